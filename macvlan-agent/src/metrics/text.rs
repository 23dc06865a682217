//! The exposition, written as it is made: one writer for Prometheus' text format 0.0.4 and for OpenMetrics 1.0.
//!
//! A host has hundreds of thousands of lines, which differ in little: what names a sub-interface is written once for all
//! its lines, and the labels behind that once for all sub-interfaces.

use std::{fmt::Write as _, io, ops::Range};

use prometheus::proto::{MetricFamily, MetricType};

use super::catalog::{METRICS, Metric, SUB_INTERFACE, Sample, Sink, Source, Type, identity};
use crate::snapshot::Snapshot;

/// How long the text may become before it is taken away.
pub const CHUNK: usize = 64 * 1024;

/// Room for the lines that make a text longer than [`CHUNK`].
const LINE: usize = 4 * 1024;

/// Room for a whole number and what ends a line.
const NUMBER: usize = 21;

/// Below this every whole number has a floating point number of its own.
const EXACT: f64 = 9_007_199_254_740_992.0;

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

/// Takes away what has been written, and leaves room for more.
pub type Take<'a> = dyn FnMut(&mut String) -> io::Result<()> + 'a;

/// Writes a whole exposition: what comes from the snapshot, then the agent's own. A metric without samples is left out.
/// `take` is given the text whenever there is a good deal of it, and at the end.
pub fn write(snapshot: &Snapshot, own: &[MetricFamily], format: Format, take: &mut Take<'_>) -> io::Result<()> {
    let mut writer = Writer {
        out: String::with_capacity(CHUNK + LINE),
        format,
        names: Names::of(snapshot),
        take,
    };
    for metric in METRICS {
        if let Source::Snapshot(samples) = metric.source {
            writer.metric(metric, |sink| samples(snapshot, sink))?;
        }
    }
    for family in own {
        writer.registered(family)?;
    }
    if format == Format::OpenMetrics {
        writer.out.push_str("# EOF\n");
    }
    (writer.take)(&mut writer.out)
}

/// What names the sub-interfaces of a snapshot, as it stands in each of their lines.
struct Names {
    text: String,
    places: Vec<Range<usize>>,
}

impl Names {
    fn of(snapshot: &Snapshot) -> Self {
        let mut names = Self {
            text: String::new(),
            places: Vec::with_capacity(snapshot.sub_interfaces.len()),
        };
        for each in &snapshot.sub_interfaces {
            let start = names.text.len();
            names.text.push('{');
            labels(&mut names.text, SUB_INTERFACE.into_iter().zip(identity(each)));
            names.places.push(start..names.text.len());
        }
        names
    }

    fn at(&self, index: usize) -> &str {
        let place = self.places.get(index).cloned().unwrap_or_default();
        self.text.get(place).unwrap_or_default()
    }
}

/// The ends of lines that a metric has had: words of ours, and the text that they make.
#[derive(Default)]
struct Ends {
    known: Vec<(Vec<&'static str>, String)>,
    /// Where the next one probably is: all sub-interfaces have the same, in the same order.
    next: usize,
}

impl Ends {
    /// The labels behind those that name a sub-interface, and what ends them.
    fn of(&mut self, names: &[&str], words: &[&'static str]) -> &str {
        // By their places in memory: that of a word of ours is never another's.
        let same = |known: &(Vec<&'static str>, String)| {
            known.0.len() == words.len() && known.0.iter().zip(words).all(|(one, other)| std::ptr::eq(*one, *other))
        };
        if !self.known.get(self.next).is_some_and(same) {
            self.next = self.known.iter().position(same).unwrap_or(self.known.len());
            if self.next == self.known.len() {
                let mut text = String::new();
                end(&mut text, names, words);
                self.known.push((words.to_vec(), text));
            }
        }
        let place = self.next;
        self.next = if place + 1 < self.known.len() { place + 1 } else { 0 };
        self.known.get(place).map_or("", |(_, text)| text)
    }
}

/// Labels behind those that name a sub-interface, and what ends them.
fn end(out: &mut String, names: &[&str], values: &[&str]) {
    if !names.is_empty() {
        out.push(',');
    }
    labels(out, names.iter().copied().zip(values.iter().copied()));
    out.push_str("} ");
}

struct Writer<'a, 'take> {
    out: String,
    format: Format,
    names: Names,
    take: &'a mut Take<'take>,
}

impl Writer<'_, '_> {
    /// A metric with its samples.
    fn metric(&mut self, metric: &Metric, samples: impl FnOnce(&mut Sink<'_>)) -> io::Result<()> {
        let (mut begun, mut result, mut ends) = (false, Ok(()), Ends::default());
        let behind = metric.labels.get(SUB_INTERFACE.len()..).unwrap_or_default();
        // A sub-interface's lines all begin with it.
        let mut head = String::new();
        samples(&mut |sample| {
            if result.is_err() {
                return;
            }
            if !begun {
                self.header(metric.name, metric.kind, metric.help);
                begun = true;
            }
            let value = match sample {
                Sample::Lines(place, lines) => {
                    head.clear();
                    head.push_str(metric.name);
                    head.push_str(self.names.at(place));
                    for (words, value) in lines {
                        let end = ends.of(behind, words);
                        self.out.reserve(head.len() + end.len() + NUMBER);
                        self.out.push_str(&head);
                        self.out.push_str(end);
                        whole(&mut self.out, *value);
                        self.out.push('\n');
                    }
                    result = self.hand_over();
                    return;
                }
                Sample::Described(place, texts, value) => {
                    self.out.push_str(metric.name);
                    self.out.push_str(self.names.at(place));
                    end(&mut self.out, behind, texts);
                    value
                }
                Sample::Of(all, value) => {
                    self.out.push_str(metric.name);
                    plain(&mut self.out, metric.labels.iter().copied().zip(all.iter().copied()));
                    value
                }
            };
            result = self.value(value);
        });
        result
    }

    /// A family of the registry.
    fn registered(&mut self, family: &MetricFamily) -> io::Result<()> {
        let kind = match family.get_field_type() {
            MetricType::COUNTER => Type::Counter,
            // The registry holds counters and gauges alone.
            _ => Type::Gauge,
        };
        self.header(family.name(), kind, family.help());
        for metric in family.get_metric() {
            let value = match kind {
                Type::Counter => metric.get_counter().get_value(),
                Type::Gauge => metric.get_gauge().get_value(),
            };
            self.out.push_str(family.name());
            let pairs = metric.get_label().iter();
            plain(&mut self.out, pairs.map(|pair| (pair.name(), pair.value())));
            self.value(value)?;
        }
        Ok(())
    }

    fn header(&mut self, name: &str, kind: Type, help: &str) {
        let quotes = self.format == Format::OpenMetrics;
        // OpenMetrics names a counter's family without the ending of its samples.
        let family = match self.format {
            Format::Text => name,
            Format::OpenMetrics => name.strip_suffix("_total").unwrap_or(name),
        };
        let out = &mut self.out;
        for part in ["# HELP ", family, " "] {
            out.push_str(part);
        }
        escape(out, help, quotes);
        for part in ["\n# TYPE ", family, " ", kind.word(), "\n"] {
            out.push_str(part);
        }
        if let (Format::OpenMetrics, Some(unit)) = (self.format, unit(family)) {
            for part in ["# UNIT ", family, " ", unit, "\n"] {
                out.push_str(part);
            }
        }
    }

    /// Ends a line.
    fn value(&mut self, value: f64) -> io::Result<()> {
        number(&mut self.out, value);
        self.out.push('\n');
        self.hand_over()
    }

    /// Has what is written taken away where it is a good deal.
    fn hand_over(&mut self) -> io::Result<()> {
        if self.out.len() < CHUNK {
            return Ok(());
        }
        (self.take)(&mut self.out)
    }
}

/// The base unit that a family's name ends in.
fn unit(family: &str) -> Option<&'static str> {
    ["bytes", "seconds"]
        .into_iter()
        .find(|unit| family.strip_suffix(unit).is_some_and(|rest| rest.ends_with('_')))
}

/// All labels of a line, and what ends them.
fn plain<'a>(out: &mut String, pairs: impl Iterator<Item = (&'a str, &'a str)>) {
    let mut pairs = pairs.peekable();
    if pairs.peek().is_some() {
        out.push('{');
        labels(out, pairs);
        out.push('}');
    }
    out.push(' ');
}

fn labels<'a>(out: &mut String, pairs: impl Iterator<Item = (&'a str, &'a str)>) {
    for (number, (name, value)) in pairs.enumerate() {
        if number > 0 {
            out.push(',');
        }
        out.push_str(name);
        out.push_str("=\"");
        escape(out, value, true);
        out.push('"');
    }
}

/// A label's value or a help text, with what the format gives a meaning made harmless.
fn escape(out: &mut String, text: &str, quotes: bool) {
    let means_something = |byte: u8| byte == b'\\' || byte == b'\n' || byte == b'"' && quotes;
    if !text.bytes().any(means_something) {
        return out.push_str(text);
    }
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            other => out.push(other),
        }
    }
}

/// A whole number; most are 0.
fn whole(out: &mut String, value: u64) {
    match u8::try_from(value) {
        Ok(digit @ 0..10) => out.push(char::from(b'0' + digit)),
        _ => out.push_str(itoa::Buffer::new().format(value)),
    }
}

fn number(out: &mut String, value: f64) {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        clippy::float_cmp,
        reason = "what is lost on the way is told by coming back"
    )]
    let (number, is_whole) = (value as u64, value as u64 as f64 == value);
    if is_whole && value < EXACT && value.is_sign_positive() {
        whole(out, number);
    } else {
        // A string takes all.
        let _ = write!(out, "{value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use super::super::own::Own;

    fn written(format: Format) -> String {
        let own = Own::new(true).expect("the table is valid");
        let mut all = String::new();
        write(&Snapshot::default(), &own.gather(), format, &mut |text| {
            all.push_str(text);
            text.clear();
            Ok(())
        })
        .expect("a string takes all");
        all
    }

    fn line(labels: &[(&str, &str)], value: f64) -> String {
        let mut out = "name".to_owned();
        plain(&mut out, labels.iter().copied());
        number(&mut out, value);
        out
    }

    #[test]
    fn values_of_labels_are_escaped() {
        let labels = [("a", "x\"y\\z\nw"), ("b", "<b>")];
        assert_eq!(line(&labels, 3.0), "name{a=\"x\\\"y\\\\z\\nw\",b=\"<b>\"} 3");
    }

    #[test]
    fn numbers_are_written_as_rust_writes_them() {
        for value in [
            0.0,
            -0.0,
            1.0,
            0.25,
            -3.0,
            1e15,
            EXACT - 1.0,
            EXACT,
            1e20,
            f64::NAN,
            f64::INFINITY,
        ] {
            assert_eq!(line(&[], value), format!("name {value}"));
        }
        assert_eq!(line(&[], EXACT), "name 9007199254740992", "no point and no exponent");
    }

    #[test]
    fn ends_of_lines_are_the_same_when_they_are_known() {
        let names = ["cast", "path"];
        let mut ends = Ends::default();
        for _ in 0..3 {
            for words in [["unicast", "a\"b"], ["unicast", "any"], ["any", "unicast"]] {
                let mut fresh = String::new();
                end(&mut fresh, &names, &words);
                assert_eq!(ends.of(&names, &words), fresh);
            }
        }
        assert_eq!(ends.known.len(), 3);
        assert_eq!(Ends::default().of(&[], &[]), "} ");
    }

    #[test]
    fn lines_of_a_sub_interface_share_what_names_it() {
        let mut writer = Writer {
            out: String::new(),
            format: Format::Text,
            names: Names {
                text: "{interface=\"a\"{interface=\"b\"".to_owned(),
                places: vec![0..14, 14..28],
            },
            take: &mut |_| Ok(()),
        };
        let metric = super::super::catalog::metric("macvlan_delivered_frames_total").expect("there");
        let samples = |sink: &mut Sink<'_>| {
            for place in [0, 1] {
                let lines: [(&[&str], u64); 2] = [(&["unicast", "sibling"], 9), (&["multicast", "any"], u64::MAX)];
                sink(Sample::Lines(place, &lines));
            }
        };
        writer.metric(metric, samples).expect("all is taken");
        let lines: Vec<_> = writer.out.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                "macvlan_delivered_frames_total{interface=\"a\",cast=\"unicast\",path=\"sibling\"} 9",
                "macvlan_delivered_frames_total{interface=\"a\",cast=\"multicast\",path=\"any\"} 18446744073709551615",
                "macvlan_delivered_frames_total{interface=\"b\",cast=\"unicast\",path=\"sibling\"} 9",
                "macvlan_delivered_frames_total{interface=\"b\",cast=\"multicast\",path=\"any\"} 18446744073709551615",
            ]
        );
    }

    #[test]
    fn a_long_text_is_taken_in_parts() {
        let mut taken = Vec::new();
        let mut writer = Writer {
            out: String::new(),
            format: Format::Text,
            names: Names::of(&Snapshot::default()),
            take: &mut |text| {
                taken.push(std::mem::take(text));
                Ok(())
            },
        };
        let metric = super::super::catalog::metric("macvlan_agent_interfaces_over_limit").expect("there");
        writer
            .metric(metric, |sink| (0..10_000).for_each(|_| sink(Sample::Of(&[], 1.0))))
            .expect("all is taken");
        drop(writer);
        assert!(
            taken.len() > 3
                && taken
                    .iter()
                    .all(|text| text.len() < CHUNK + LINE && text.ends_with(" 1\n"))
        );
    }

    #[test]
    fn what_cannot_be_taken_ends_the_writing() {
        let mut times = 0;
        let result = write(&Snapshot::default(), &[], Format::Text, &mut |_| {
            times += 1;
            Err(io::ErrorKind::BrokenPipe.into())
        });
        assert_eq!((result.is_err(), times), (true, 1));
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
    fn how_often_netlink_was_read_anew_comes_from_the_snapshot() {
        let snapshot = Snapshot {
            netlink_resyncs: 3,
            ..Snapshot::default()
        };
        let mut all = String::new();
        write(&snapshot, &[], Format::Text, &mut |text| {
            all.push_str(text);
            text.clear();
            Ok(())
        })
        .expect("a string takes all");
        assert!(all.contains("\nmacvlan_agent_netlink_resyncs_total 3\n"), "{all}");
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
        let mut writer = Writer {
            out: String::new(),
            format: Format::OpenMetrics,
            names: Names::of(&Snapshot::default()),
            take: &mut |_| Ok(()),
        };
        writer.header("a_bytes_total", Type::Counter, "Say \"a\\b\".");
        assert_eq!(
            writer.out,
            "# HELP a_bytes Say \\\"a\\\\b\\\".\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\n"
        );
    }
}
