//! A scrape: fetched by a small client of our own, parsed by the rules of the text format 0.0.4, and asked for numbers.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

/// How long a request may take, in an emulated machine as well.
const TIMEOUT: Duration = Duration::from_secs(30);

/// An answer over HTTP.
#[derive(Clone, Debug)]
pub struct Response {
    /// 200 …
    pub status: u16,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    /// As text.
    pub body: String,
}

/// `GET path`, on a connection of its own.
pub fn get(address: SocketAddr, path: &str) -> Result<Response> {
    get_with(address, path, &[])
}

/// The same with more headers.
pub fn get_with(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Response> {
    exchange(connect(address)?, path, headers).with_context(|| format!("http://{address}{path}"))
}

/// `POST path` without a body, on a connection of its own.
pub fn post(address: SocketAddr, path: &str) -> Result<Response> {
    let nothing = [("Content-Length", "0")];
    ask(connect(address)?, "POST", path, &nothing).with_context(|| format!("http://{address}{path}"))
}

pub(crate) fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT).with_context(|| format!("no answer at {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// `GET path` as the only request of a connection.
pub fn exchange(stream: impl Read + Write, path: &str, headers: &[(&str, &str)]) -> Result<Response> {
    ask(stream, "GET", path, headers)
}

fn ask(mut stream: impl Read + Write, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Response> {
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: agent.test\r\nConnection: close\r\n");
    for (name, value) in headers {
        let _ = write!(request, "{name}: {value}\r\n");
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // Behind TLS, or after a request that was refused half-way, the end may be abrupt; the body's length tells.
        Err(error) if answer.is_empty() => Err(error).context("no answer"),
        _ => read_response(&answer).context("this is not answered in HTTP/1.1"),
    }
}

/// Reads a whole answer of HTTP/1.1.
pub fn read_response(answer: &[u8]) -> Result<Response> {
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .context("no end of the header")?;
    let head = std::str::from_utf8(&answer[..end])?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .context("no status line")?
        .parse()?;
    let headers: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let body = &answer[end + 4..];
    let body = match headers.get("transfer-encoding").map(String::as_str) {
        Some("chunked") => unchunk(body)?,
        _ => body.to_vec(),
    };
    if let Some(length) = headers.get("content-length") {
        ensure!(
            length.parse() == Ok(body.len()),
            "{} bytes came, {length} were announced",
            body.len()
        );
    }
    let body = match headers.get("content-encoding").map(String::as_str) {
        Some("gzip") => unzip(&body)?,
        Some(other) => bail!("the content is encoded as {other}"),
        None => body,
    };
    Ok(Response {
        status,
        headers,
        body: String::from_utf8(body)?,
    })
}

fn unzip(packed: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    flate2::read::GzDecoder::new(packed)
        .read_to_end(&mut body)
        .context("the body is no gzip")?;
    Ok(body)
}

fn unchunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest
            .windows(2)
            .position(|window| window == b"\r\n")
            .context("a chunk without a size")?;
        let size = std::str::from_utf8(&rest[..end])?.split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size.trim(), 16)?;
        if size == 0 {
            return Ok(body);
        }
        body.extend(rest.get(end + 2..end + 2 + size).context("a chunk was cut off")?);
        rest = rest.get(end + 2 + size + 2..).context("a chunk without an end")?;
    }
}

/// What stands above a metric's samples.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Family {
    /// `counter`, `gauge` …
    pub kind: String,
    /// The help text.
    pub help: String,
}

/// One line with a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Sample {
    /// A label's value; empty when it has none, which means the same.
    #[must_use]
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }

    fn matches(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.name == name && labels.iter().all(|&(label, value)| self.label(label) == value)
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels: Vec<_> = self
            .labels
            .iter()
            .map(|(name, value)| format!("{name}={value:?}"))
            .collect();
        write!(f, "{}{{{}}} {}", self.name, labels.join(","), self.value)
    }
}

/// All samples of one `GET /metrics`.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// By name.
    pub families: BTreeMap<String, Family>,
    /// In the order they came.
    pub samples: Vec<Sample>,
    /// As it came.
    pub text: String,
}

impl Scrape {
    /// Scrapes `/metrics`.
    pub fn fetch(address: SocketAddr) -> Result<Self> {
        let response = get(address, "/metrics")?;
        ensure!(
            response.status == 200,
            "/metrics: status {}: {}",
            response.status,
            response.body
        );
        let kind = response.headers.get("content-type").map_or("", String::as_str);
        ensure!(
            kind.starts_with("text/plain; version=0.0.4"),
            "/metrics has content type {kind:?}"
        );
        Self::parse(&response.body)
    }

    /// Parses the text format 0.0.4; what a Prometheus would stumble over is an error.
    pub fn parse(text: &str) -> Result<Self> {
        let mut scrape = Self {
            text: text.into(),
            ..Self::default()
        };
        let mut finished = Vec::<String>::new();
        let mut current = String::new();
        ensure!(text.is_empty() || text.ends_with('\n'), "the last line has no end");
        for (number, line) in text.lines().enumerate() {
            scrape
                .line(line, &mut current, &mut finished)
                .with_context(|| format!("line {} of the scrape: {line}", number + 1))?;
        }
        let mut keys: Vec<_> = scrape
            .samples
            .iter()
            .map(|sample| (&sample.name, &sample.labels))
            .collect();
        keys.sort();
        if let Some(twice) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("{}{:?} stands in the scrape twice", twice[0].0, twice[0].1);
        }
        Ok(scrape)
    }

    fn line(&mut self, line: &str, current: &mut String, finished: &mut Vec<String>) -> Result<()> {
        if line.is_empty() {
            return Ok(());
        }
        let name = match line
            .strip_prefix('#')
            .map(|comment| comment.trim_start().split_once(' '))
        {
            None => {
                let sample = parse_sample(line)?;
                self.samples.push(sample);
                line.split(['{', ' ']).next().unwrap_or_default()
            }
            Some(Some(("HELP", rest))) => {
                let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
                self.families.entry(name.into()).or_default().help = help.into();
                name
            }
            Some(Some(("TYPE", rest))) => {
                let (name, kind) = rest.split_once(' ').context("a type without a word for it")?;
                let known = ["counter", "gauge", "histogram", "summary", "untyped"].contains(&kind);
                ensure!(known, "{kind:?} is no type of metric");
                ensure!(
                    !self.samples.iter().any(|sample| sample.name == name),
                    "a type after the samples"
                );
                self.families.entry(name.into()).or_default().kind = kind.into();
                name
            }
            Some(_) => return Ok(()),
        };
        if name != current {
            ensure!(
                !finished.iter().any(|done| done == name),
                "the lines of {name} do not stand together"
            );
            finished.push(std::mem::replace(current, name.into()));
        }
        Ok(())
    }

    /// The samples of `name` that have these labels among theirs.
    pub fn samples<'a, 'q>(
        &'a self,
        name: &'q str,
        labels: &'q [(&'q str, &'q str)],
    ) -> impl Iterator<Item = &'a Sample> + use<'a, 'q> {
        self.samples.iter().filter(move |sample| sample.matches(name, labels))
    }

    /// The one sample of `name` that has these labels among its own.
    ///
    /// # Panics
    /// When there is none or more than one; the message lists what there is.
    #[must_use]
    pub fn sample(&self, name: &str, labels: &[(&str, &str)]) -> &Sample {
        let found: Vec<_> = self.samples(name, labels).collect();
        match found[..] {
            [sample] => sample,
            _ => panic!(
                "{} samples are {name} with {labels:?}; there are:\n{}",
                found.len(),
                self.listing(name)
            ),
        }
    }

    /// The value of that sample.
    #[must_use]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.sample(name, labels).value
    }

    /// The value of that sample as a whole number.
    #[must_use]
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        whole(self.value(name, labels))
    }

    /// The sum over all samples that match.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        // Not `sum`, which makes -0 of nothing.
        self.samples(name, labels).fold(0.0, |sum, sample| sum + sample.value)
    }

    /// All samples of `name`, one a line; of what has a similar name when there is none.
    #[must_use]
    pub fn listing(&self, name: &str) -> String {
        let mut text = String::new();
        for sample in self.samples.iter().filter(|sample| sample.name == name) {
            let _ = writeln!(text, "  {sample}");
        }
        if text.is_empty() {
            let names: Vec<_> = self.families.keys().map(String::as_str).collect();
            text = format!("  none; the metrics are {}", names.join(", "));
        }
        text
    }
}

/// A value that must be a whole number.
///
/// # Panics
/// When it is not.
#[must_use]
pub fn whole(value: f64) -> u64 {
    format!("{value:.0}")
        .parse()
        .ok()
        .filter(|_| value.fract().abs() < f64::EPSILON)
        .unwrap_or_else(|| panic!("{value} is no count"))
}

fn parse_sample(line: &str) -> Result<Sample> {
    let (name, labels, rest) = match line.find(['{', ' ']) {
        Some(at) if line[at..].starts_with('{') => {
            let (labels, rest) = parse_labels(&line[at + 1..])?;
            (&line[..at], labels, rest)
        }
        Some(at) => (&line[..at], BTreeMap::new(), &line[at..]),
        None => bail!("no value"),
    };
    ensure!(is_name(name, true), "{name:?} is no name of a metric");
    let mut fields = rest.split_whitespace();
    let value = match fields.next().context("no value")? {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse().with_context(|| format!("{number:?} is no value"))?,
    };
    ensure!(
        fields.next().is_none(),
        "something after the value: node_exporter gives no timestamps, nor do we"
    );
    Ok(Sample {
        name: name.into(),
        labels,
        value,
    })
}

fn parse_labels(mut text: &str) -> Result<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        if let Some(rest) = text.strip_prefix('}') {
            return Ok((labels, rest));
        }
        let (name, rest) = text.split_once("=\"").context("a label without a value")?;
        ensure!(is_name(name, false), "{name:?} is no name of a label");
        let mut value = String::new();
        let mut characters = rest.char_indices();
        let end = loop {
            match characters.next().context("a label's value has no end")? {
                (at, '"') => break at,
                (_, '\\') => value.push(match characters.next().context("nothing is escaped")?.1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    c => bail!("\\{c} is not an escape"),
                }),
                (_, c) => value.push(c),
            }
        };
        ensure!(
            labels.insert(name.to_owned(), value).is_none(),
            "label {name} is given twice"
        );
        let rest = &rest[end + 1..];
        text = rest.strip_prefix(',').unwrap_or(rest);
    }
}

fn is_name(name: &str, colons: bool) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP a_total Of a.\n# TYPE a_total counter\na_total{x=\"1\",y=\"a\\\"b\\\\\\n\"} 3\n\
                        a_total{x=\"2\"} 4\n# HELP b Of b.\n# TYPE b gauge\nb 1.5\n";

    #[test]
    fn a_scrape_is_read_by_name_and_labels() {
        let scrape = Scrape::parse(TEXT).unwrap();
        assert_eq!(scrape.count("a_total", &[("x", "1")]), 3);
        assert_eq!(scrape.sample("a_total", &[("x", "1")]).label("y"), "a\"b\\\n");
        assert_eq!(whole(scrape.sum("a_total", &[])), 7);
        assert_eq!(
            scrape.families["b"],
            Family {
                kind: "gauge".into(),
                help: "Of b.".into()
            }
        );
    }

    #[test]
    #[should_panic(expected = "2 samples are a_total")]
    fn two_samples_where_one_is_meant_are_an_error() {
        let _ = Scrape::parse(TEXT).unwrap().value("a_total", &[]);
    }

    #[test]
    fn what_a_prometheus_refuses_is_refused() {
        for text in [
            "a 1",
            "a x\n",
            "a{x=\"1} 1\n",
            "a{1x=\"1\"} 1\n",
            "a 1\na 2\n",
            "a{x=\"1\"} 1\na{x=\"1\"} 2\n",
            "a{x=\"1\"} 1\nb 1\na{x=\"2\"} 1\n",
            "# TYPE a count\na 1\n",
            "a 1\n# TYPE a gauge\n",
        ] {
            assert!(Scrape::parse(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_chunked_answer_is_put_together() {
        let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(read_response(answer).unwrap().body, "abcde");
    }
}
