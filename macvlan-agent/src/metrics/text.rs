//! The exposition, written as it is made: one writer for Prometheus' text format 0.0.4 and for OpenMetrics 1.0.

use std::fmt::{self, Write};

use prometheus::proto::{MetricFamily, MetricType};

use super::catalog::{METRICS, Source, Type};
use crate::snapshot::Snapshot;

/// How an exposition is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The format's content type.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Writes a whole exposition: what comes from the snapshot, then the agent's own. A metric without samples is left out.
pub fn write(snapshot: &Snapshot, own: &[MetricFamily], format: Format, out: &mut impl Write) -> fmt::Result {
    for metric in METRICS {
        let Source::Snapshot(samples) = metric.source else {
            continue;
        };
        let mut begun = false;
        let mut result = Ok(());
        samples(snapshot, &mut |values, value| {
            if result.is_ok() {
                result = if begun {
                    Ok(())
                } else {
                    header(out, format, metric.name, metric.kind, metric.help)
                }
                .and_then(|()| sample(out, metric.name, metric.labels.iter().zip(values), value));
                begun = true;
            }
        });
        result?;
    }
    for family in own {
        registered(family, format, out)?;
    }
    match format {
        Format::Text => Ok(()),
        Format::OpenMetrics => out.write_str("# EOF\n"),
    }
}

/// A family of the registry.
fn registered(family: &MetricFamily, format: Format, out: &mut impl Write) -> fmt::Result {
    let kind = match family.get_field_type() {
        MetricType::COUNTER => Type::Counter,
        // The registry holds counters and gauges alone.
        _ => Type::Gauge,
    };
    header(out, format, family.name(), kind, family.help())?;
    for metric in family.get_metric() {
        let value = match kind {
            Type::Counter => metric.get_counter().get_value(),
            Type::Gauge => metric.get_gauge().get_value(),
        };
        let labels = metric.get_label().iter().map(|pair| (pair.name(), pair.value()));
        sample(out, family.name(), labels, value)?;
    }
    Ok(())
}

fn header(out: &mut impl Write, format: Format, name: &str, kind: Type, help: &str) -> fmt::Result {
    let quotes = format == Format::OpenMetrics;
    // OpenMetrics names a counter's family without the ending of its samples.
    let family = match format {
        Format::Text => name,
        Format::OpenMetrics => name.strip_suffix("_total").unwrap_or(name),
    };
    let help = Escaped { text: help, quotes };
    writeln!(out, "# HELP {family} {help}\n# TYPE {family} {}", kind.word())?;
    match (format, unit(family)) {
        (Format::OpenMetrics, Some(unit)) => writeln!(out, "# UNIT {family} {unit}"),
        _ => Ok(()),
    }
}

/// The base unit that a family's name ends in.
fn unit(family: &str) -> Option<&'static str> {
    ["bytes", "seconds"]
        .into_iter()
        .find(|unit| family.strip_suffix(unit).is_some_and(|rest| rest.ends_with('_')))
}

fn sample<L: AsRef<str>, V: AsRef<str>>(
    out: &mut impl Write,
    name: &str,
    labels: impl Iterator<Item = (L, V)>,
    value: f64,
) -> fmt::Result {
    out.write_str(name)?;
    let mut before = '{';
    for (label, text) in labels {
        out.write_char(before)?;
        out.write_str(label.as_ref())?;
        write!(
            out,
            "=\"{}\"",
            Escaped {
                text: text.as_ref(),
                quotes: true
            }
        )?;
        before = ',';
    }
    if before == ',' {
        out.write_char('}')?;
    }
    writeln!(out, " {value}")
}

/// A label's value or a help text, with what the format gives a meaning made harmless.
struct Escaped<'a> {
    text: &'a str,
    quotes: bool,
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.text.chars() {
            match character {
                '\\' => out.write_str("\\\\")?,
                '\n' => out.write_str("\\n")?,
                '"' if self.quotes => out.write_str("\\\"")?,
                other => out.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use super::super::own::Own;

    fn written(format: Format) -> String {
        let own = Own::new(true).expect("the table is valid");
        let mut out = String::new();
        write(&Snapshot::default(), &own.gather(), format, &mut out).expect("a string takes all");
        out
    }

    #[test]
    fn values_of_labels_are_escaped() {
        let mut out = String::new();
        let labels = [("a", "x\"y\\z\nw"), ("b", "<b>")];
        sample(&mut out, "name", labels.into_iter(), 3.0).expect("a string takes all");
        assert_eq!(out, "name{a=\"x\\\"y\\\\z\\nw\",b=\"<b>\"} 3\n");
    }

    #[test]
    fn whole_numbers_have_no_point_and_no_exponent() {
        let mut out = String::new();
        let none = std::iter::empty::<(&str, &str)>();
        sample(&mut out, "name", none, 9_007_199_254_740_992.0).expect("a string takes all");
        assert_eq!(out, "name 9007199254740992\n");
    }

    #[test]
    fn an_empty_host_still_tells_about_the_agent() {
        let out = written(Format::Text);
        assert!(out.contains("macvlan_agent_interfaces_over_limit 0\n"), "{out}");
        assert!(
            out.contains("# TYPE macvlan_agent_netlink_resyncs_total counter\nmacvlan_agent_netlink_resyncs_total 0\n"),
            "{out}"
        );
        assert!(!out.contains("macvlan_delivered"), "no header without samples");
        assert!(!out.contains("# EOF") && !out.contains("# UNIT"), "{out}");
    }

    #[test]
    fn openmetrics_names_families_as_it_wants_them() {
        let out = written(Format::OpenMetrics);
        assert!(
            out.contains("# TYPE macvlan_agent_netlink_resyncs counter\nmacvlan_agent_netlink_resyncs_total 0\n"),
            "{out}"
        );
        assert!(
            out.contains("# TYPE process_cpu_seconds counter\n# UNIT process_cpu_seconds seconds\n"),
            "{out}"
        );
        assert!(out.ends_with("\n# EOF\n") && !out.contains("\n\n"), "{out}");
    }

    #[test]
    fn both_formats_have_the_same_samples() {
        let samples = |format| -> Vec<String> {
            let name = |line: &str| line.split([' ', '{']).next().map(str::to_owned);
            written(format)
                .lines()
                .filter(|line| !line.starts_with('#'))
                .filter_map(name)
                .collect()
        };
        assert_eq!(samples(Format::Text), samples(Format::OpenMetrics));
    }

    #[test]
    fn openmetrics_escapes_quotes_in_help() {
        let mut out = String::new();
        header(
            &mut out,
            Format::OpenMetrics,
            "a_bytes_total",
            Type::Counter,
            "Say \"a\\b\".",
        )
        .expect("all is taken");
        assert_eq!(
            out,
            "# HELP a_bytes Say \\\"a\\\\b\\\".\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\n"
        );
    }
}
