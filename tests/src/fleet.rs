//! Many agents that are not there: each host answers as one real agent did, with more sub-interfaces and counts that
//! grow. For what a fleet costs a Prometheus; of the agent it shows nothing.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Instant,
};

use flate2::{Compression, write::GzEncoder};

/// Of so many sub-interfaces one loses frames.
const ONE_LOSES_OF: usize = 50;

/// What one agent answered, cut where the series of its sub-interface are.
#[derive(Clone, Debug)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    /// A line as it is.
    Fixed(String),
    /// Series that follow each other, once for each sub-interface: what stands before and behind its labels.
    Each(Vec<Series>),
}

#[derive(Clone, Debug)]
struct Series {
    name: String,
    /// The labels without those of the sub-interface, each with a comma before it.
    more: String,
    value: u64,
}

impl Template {
    /// Of an answer in OpenMetrics, by the labels of the sub-interface that is in it.
    ///
    /// # Panics
    /// When the sub-interface has no series there.
    #[must_use]
    pub fn of(text: &str, labels: &[(&str, String)]) -> Self {
        let mut parts = Vec::new();
        for line in text.lines() {
            match (Series::of(line, labels), parts.last_mut()) {
                (Some(series), Some(Part::Each(all))) => all.push(series),
                (Some(series), _) => parts.push(Part::Each(vec![series])),
                (None, _) => parts.push(Part::Fixed(line.to_owned())),
            }
        }
        let template = Self { parts };
        assert!(template.series_of_each() > 0, "{labels:?} is not in\n{text}");
        template
    }

    /// How many series each sub-interface has.
    #[must_use]
    pub fn series_of_each(&self) -> usize {
        let each = self.parts.iter().map(|part| match part {
            Part::Each(series) => series.len(),
            Part::Fixed(_) => 0,
        });
        each.sum()
    }

    /// How many series a host has beside them.
    #[must_use]
    pub fn series_of_host(&self) -> usize {
        let fixed = self.parts.iter().filter(|part| match part {
            Part::Fixed(line) => !line.starts_with('#'),
            Part::Each(_) => false,
        });
        fixed.count()
    }

    /// A host's answer, some seconds after the start.
    #[must_use]
    pub fn text(&self, sub_interfaces: usize, seconds: u64) -> String {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Fixed(line) => {
                    let _ = writeln!(text, "{line}");
                }
                Part::Each(all) => {
                    for (number, series) in (0..sub_interfaces).flat_map(|number| all.iter().map(move |s| (number, s)))
                    {
                        series.write(&mut text, number, seconds);
                    }
                }
            }
        }
        text
    }
}

impl Series {
    fn of(line: &str, labels: &[(&str, String)]) -> Option<Self> {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, inside) = series.strip_suffix('}')?.split_once('{')?;
        let mut more = inside.to_owned();
        for (label, value) in labels {
            let own = format!("{label}=\"{value}\"");
            let place = more.find(&own)?;
            more.replace_range(place..place + own.len(), "");
        }
        let more: String = more
            .split(',')
            .filter(|label| !label.is_empty())
            .map(|label| format!(",{label}"))
            .collect();
        (!name.starts_with('#')).then(|| Self {
            name: name.to_owned(),
            more,
            value: value.trim_end_matches(".0").parse().unwrap_or(0),
        })
    }

    fn write(&self, text: &mut String, number: usize, seconds: u64) {
        let value = self.value_of(number, seconds);
        let _ = writeln!(
            text,
            "{}{{parent=\"eth0\",interface=\"eth0\",netns=\"container-{number}\"{}}} {value}",
            self.name, self.more
        );
    }

    /// What moved at the agent moves here; gauges, and what did not happen, stay.
    fn value_of(&self, number: usize, seconds: u64) -> u64 {
        let is_loss = ["dropped", "isolation"].iter().any(|word| self.name.contains(word));
        if !self.name.ends_with("_total") || self.value == 0 {
            self.value
        } else if is_loss {
            seconds * u64::from(number.is_multiple_of(ONE_LOSES_OF))
        } else {
            self.value + seconds * (10 + number as u64 % 90)
        }
    }
}

/// Starts so many hosts; they answer until the program ends.
///
/// # Panics
/// When no port is free.
#[must_use]
pub fn start(template: Template, hosts: usize, sub_interfaces: usize) -> Vec<SocketAddr> {
    let (template, start) = (Arc::new(template), Instant::now());
    let host = |_| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it listens");
        let template = Arc::clone(&template);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Whoever asked may be gone.
                let _ = serve(&stream, &template, sub_interfaces, start);
            }
        });
        address
    };
    (0..hosts).map(host).collect()
}

/// Answers every request of a connection alike.
fn serve(mut stream: &TcpStream, template: &Template, sub_interfaces: usize, start: Instant) -> std::io::Result<()> {
    for line in BufReader::new(stream).lines() {
        if !line?.is_empty() {
            continue;
        }
        let mut body = GzEncoder::new(Vec::new(), Compression::fast());
        body.write_all(template.text(sub_interfaces, start.elapsed().as_secs()).as_bytes())?;
        let body = body.finish()?;
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n\
             Content-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(&body)?;
    }
    Ok(())
}
