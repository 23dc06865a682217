//! A Prometheus of Debian's, on this machine: started with its own directory, asked over HTTP.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    exposition,
    surroundings::{eventually, patience, prometheus_program},
};

/// A server of our own, with everything in a directory that goes with it.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    address: SocketAddr,
    directory: tempfile::TempDir,
}

impl Prometheus {
    /// Starts one that scrapes these each second as the job `macvlan`; `more` is added to its configuration.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(targets: &[SocketAddr], more: &str) -> Self {
        let list: Vec<_> = targets.iter().map(|target| format!("\"{target}\"")).collect();
        let configuration = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\n{more}\
             scrape_configs:\n- job_name: macvlan\n  static_configs:\n  - targets: [{}]\n",
            list.join(", ")
        );
        Self::start_with(&configuration)
    }

    /// The same with a whole configuration.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start_with(configuration: &str) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("macvlan-prometheus-")
            .tempdir()
            .expect("a directory");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("a free port");
        let path = |name: &str| directory.path().join(name);
        fs::write(path("prometheus.yml"), configuration).expect("a configuration");
        let log = fs::File::create(path("log")).expect("a log");
        let child = Command::new(prometheus_program("prometheus"))
            .arg(format!("--config.file={}", path("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", path("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--web.enable-remote-write-receiver")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("prometheus starts");
        Self {
            child,
            address,
            directory,
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `GET path` as JSON, or why not.
    pub fn try_get(&self, path: &str) -> Result<serde_json::Value, String> {
        let answer = exposition::get(self.address, path).map_err(|error| format!("{error:#}"))?;
        serde_json::from_str(&answer.body).map_err(|error| format!("{error}: {}", answer.body))
    }

    /// `GET path` as JSON.
    ///
    /// # Panics
    /// When that is not the answer.
    #[must_use]
    pub fn get(&self, path: &str) -> serde_json::Value {
        self.try_get(path)
            .unwrap_or_else(|error| panic!("{error}; log:\n{}", self.log()))
    }

    /// The result of an instant query: labels and value of each sample.
    pub fn query(&self, query: &str) -> Result<Vec<Sample>, String> {
        self.samples(&format!("/api/v1/query?query={}", encode(query)))
    }

    /// The result of a query over the last seconds, as graphs ask: labels and last value of each series.
    pub fn query_range(&self, query: &str, seconds: u32) -> Result<Vec<Sample>, String> {
        let now = self.query("vector(time())")?.first().map_or(0.0, |sample| sample.value);
        let start = now - f64::from(seconds);
        let query = encode(query);
        self.samples(&format!(
            "/api/v1/query_range?query={query}&start={start}&end={now}&step=1"
        ))
    }

    fn samples(&self, path: &str) -> Result<Vec<Sample>, String> {
        let answer = self.try_get(path)?;
        if answer["status"] != "success" || !answer["warnings"].is_null() {
            return Err(answer.to_string());
        }
        let samples = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        samples
            .iter()
            .map(|sample| Sample::read(sample).ok_or_else(|| sample.to_string()))
            .collect()
    }

    /// The series that match, as text, without what Prometheus adds to name the target.
    ///
    /// # Panics
    /// When there is no answer.
    #[must_use]
    pub fn series(&self, matching: &str) -> Vec<String> {
        let answer = self.get(&format!("/api/v1/series?match[]={}", encode(matching)));
        let list = answer["data"].as_array().cloned().unwrap_or_default();
        let text = |series: &serde_json::Value| {
            let mut labels: BTreeMap<String, String> = serde_json::from_value(series.clone()).expect("labels");
            let name = labels.remove("__name__").unwrap_or_default();
            labels.retain(|label, _| label != "job" && label != "instance");
            format!("{name}{labels:?}")
        };
        list.iter().map(text).collect()
    }

    /// Waits until the one sample of an instant query has this value.
    ///
    /// # Panics
    /// When it does not come to have it.
    pub fn await_value(&self, query: &str, value: &str) {
        let path = format!("/api/v1/query?query={}", encode(query));
        eventually(patience(Duration::from_secs(20)), || {
            let json = self.try_get(&path)?;
            if json["data"]["result"][0]["value"][1] == value {
                Ok(())
            } else {
                Err(format!("{query} is not {value} but {json}; log:\n{}", self.log()))
            }
        });
    }

    /// What it said.
    #[must_use]
    pub fn log(&self) -> String {
        read(&self.directory.path().join("log"))
    }

    fn end(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.end();
        }
    }
}

/// One sample of an instant query.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Sample {
    fn read(json: &serde_json::Value) -> Option<Self> {
        let point = json["values"]
            .as_array()
            .map_or(&json["value"], |values| values.last().unwrap_or(&json["value"]));
        Some(Self {
            labels: serde_json::from_value(json["metric"].clone()).ok()?,
            value: point[1].as_str()?.parse().ok()?,
        })
    }

    /// A label's value; empty when it has none.
    #[must_use]
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A query as part of an URL.
#[must_use]
pub fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut url, byte| {
        if byte.is_ascii_alphanumeric() {
            url.push(char::from(byte));
        } else {
            let _ = write!(url, "%{byte:02X}");
        }
        url
    })
}
