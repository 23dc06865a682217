//! Where in a YAML text each value stands, by its path: `sub_interfaces[0].mode` is in line 7.

use std::collections::BTreeMap;

use granit_parser::{Event, Parser};

/// Lines by path. A path that is not there stands where the nearest one around it does.
#[derive(Debug, Default)]
pub(super) struct Places(BTreeMap<String, usize>);

/// What is open around the next event.
enum Open {
    /// A list, with the number of its next item.
    List(String, usize),
    /// A mapping, and the key whose value comes next.
    Map(String, Option<String>),
}

impl Places {
    /// Reads them; of a text that is no YAML those before the fault.
    pub(super) fn of(text: &str) -> Self {
        let mut places = Self::default();
        let mut open: Vec<Open> = Vec::new();
        for (event, span) in Parser::new_from_str(text).map_while(Result::ok) {
            let line = span.start.line();
            match event {
                Event::Scalar(value, ..) => {
                    if let Some(Open::Map(path, key @ None)) = open.last_mut() {
                        let path = join(path, &value);
                        places.0.entry(path).or_insert(line);
                        *key = Some(value.into_owned());
                    } else {
                        places.value(&mut open, line);
                    }
                }
                Event::SequenceStart(..) => {
                    let path = places.value(&mut open, line);
                    open.push(Open::List(path, 0));
                }
                Event::MappingStart(..) => {
                    let path = places.value(&mut open, line);
                    open.push(Open::Map(path, None));
                }
                Event::SequenceEnd | Event::MappingEnd => drop(open.pop()),
                Event::Alias(..) => drop(places.value(&mut open, line)),
                _ => {}
            }
        }
        places
    }

    /// A value begins: notes its place and gives its path.
    fn value(&mut self, open: &mut [Open], line: usize) -> String {
        match open.last_mut() {
            None => String::new(),
            Some(Open::List(path, next)) => {
                let path = format!("{path}[{next}]");
                *next += 1;
                self.0.entry(path.clone()).or_insert(line);
                path
            }
            Some(Open::Map(path, key)) => join(path, &key.take().unwrap_or_default()),
        }
    }

    /// The line of the value at `path`, or of the nearest around it.
    pub(super) fn line(&self, path: &str) -> usize {
        let mut path = path;
        loop {
            if let Some(line) = self.0.get(path) {
                return *line;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return 1,
            }
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_has_its_line() {
        let text = "# a comment\nlimits: { sub_interfaces: 4 }\nsub_interfaces:\n  - name: a\n    mode: bridge\n    \
                    addresses:\n      - 198.51.100.1/24\n      - 198.51.100.2/24\n\n  - { name: b,\n      mode: vepa }\n";
        let places = Places::of(text);
        for (path, line) in [
            ("limits", 2),
            ("limits.sub_interfaces", 2),
            ("sub_interfaces", 3),
            ("sub_interfaces[0]", 4),
            ("sub_interfaces[0].mode", 5),
            ("sub_interfaces[0].addresses[1]", 8),
            ("sub_interfaces[1].mode", 11),
            ("sub_interfaces[1].gateway", 10),
            ("nothing", 1),
        ] {
            assert_eq!(places.line(path), line, "{path}");
        }
    }
}
