//! The agent about itself: the prometheus crate's registry, with `process_*`.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{
    Gauge, IntGauge, IntGaugeVec, Opts, Registry, process_collector::ProcessCollector, proto::MetricFamily,
};

use super::catalog;
use crate::manage::plan::Tally;

/// The agent's own metrics.
pub struct Own {
    registry: Registry,
    managed: IntGaugeVec,
    reload_successful: IntGauge,
    reload_time: Gauge,
}

impl Own {
    /// Registers them, by the table; `process_*` only where they are wanted.
    pub fn new(process: bool) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let build = IntGaugeVec::new(opts("macvlan_agent_build_info"), labels("macvlan_agent_build_info"))?;
        build
            .with_label_values(&[
                env!("CARGO_PKG_VERSION"),
                env!("MACVLAN_AGENT_REVISION"),
                env!("MACVLAN_AGENT_RUSTC"),
            ])
            .set(1);
        let managed = IntGaugeVec::new(opts("macvlan_managed_interfaces"), labels("macvlan_managed_interfaces"))?;
        let reload_successful = IntGauge::with_opts(opts("macvlan_agent_config_last_reload_successful"))?;
        let reload_time = Gauge::with_opts(opts("macvlan_agent_config_last_reload_success_timestamp_seconds"))?;
        registry.register(Box::new(managed.clone()))?;
        registry.register(Box::new(reload_successful.clone()))?;
        registry.register(Box::new(reload_time.clone()))?;
        registry.register(Box::new(build))?;
        if process {
            registry.register(Box::new(ProcessCollector::for_self()))?;
        }
        let own = Self {
            registry,
            managed,
            reload_successful,
            reload_time,
        };
        own.managed(Tally::default());
        Ok(own)
    }

    /// Notes how many interfaces are managed, and how they are.
    pub fn managed(&self, tally: Tally) {
        for (state, number) in [
            ("ready", tally.ready),
            ("pending", tally.pending),
            ("failed", tally.failed),
        ] {
            let number = i64::try_from(number).unwrap_or(i64::MAX);
            self.managed.with_label_values(&[state]).set(number);
        }
    }

    /// Notes that a configuration was read, or could not be.
    pub fn reloaded(&self, good: bool) {
        self.reload_successful.set(good.into());
        if good {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.reload_time.set(now.as_secs_f64());
        }
    }

    /// They, as they are now.
    #[must_use]
    pub fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }
}

fn opts(name: &'static str) -> Opts {
    Opts::new(name, catalog::metric(name).map_or("", |metric| metric.help))
}

fn labels(name: &'static str) -> &'static [&'static str] {
    catalog::metric(name).map_or(&[], |metric| metric.labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::catalog::{METRICS, Source};

    fn names(own: &Own) -> Vec<String> {
        own.gather().iter().map(|family| family.name().to_owned()).collect()
    }

    #[test]
    fn every_own_metric_of_the_table_is_in_the_registry() {
        let own = Own::new(true).expect("the table is valid");
        let families = own.gather();
        for metric in METRICS
            .iter()
            .filter(|metric| matches!(metric.source, Source::Registry))
        {
            let family = families.iter().find(|family| family.name() == metric.name);
            assert_eq!(family.map(MetricFamily::help), Some(metric.help), "{}", metric.name);
        }
    }

    #[test]
    fn process_metrics_can_be_left_out() {
        let process = |own: &Own| names(own).iter().any(|name| name.starts_with("process_"));
        assert!(process(&Own::new(true).expect("the table is valid")));
        assert!(!process(&Own::new(false).expect("the table is valid")));
    }
}
