//! Reads a configuration: text in, a valid configuration or all that is wrong with it out.

use std::{fmt, fs, io, path::Path};

use super::{
    check::{Fault, faults},
    file::Config,
    places::Places,
};

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It could not be read.
    #[error("cannot read the configuration {path}: {source}; --config.file says where it is")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// It is wrong; nothing of it was used.
    #[error("{0}")]
    Invalid(Complaints),
}

/// All that is wrong with a file, a line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaints(pub Vec<Complaint>);

impl fmt::Display for Complaints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, complaint) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{complaint}")?;
        }
        Ok(())
    }
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// The file.
    pub file: String,
    /// The line.
    pub line: usize,
    /// The field, as in `sub_interfaces[0].mode`; empty for the file as a whole.
    pub field: String,
    /// What is wrong and what would be right.
    pub text: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file, self.line)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.text)
    }
}

/// A configuration, and where in its file everything stands.
#[derive(Debug)]
pub struct Loaded {
    /// What it says.
    pub config: Config,
    file: String,
    places: Places,
}

impl Loaded {
    /// Where `fault` is.
    #[must_use]
    pub fn complaint(&self, fault: Fault) -> Complaint {
        Complaint {
            file: self.file.clone(),
            line: self.places.line(&fault.field),
            field: fault.field,
            text: fault.text,
        }
    }
}

/// Reads the file at `path`.
pub fn read(path: &Path) -> Result<Loaded, ConfigError> {
    let name = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: name.clone(),
        source,
    })?;
    parse(&text, &name).map_err(ConfigError::Invalid)
}

/// Reads `text`, which `file` is the name of.
pub fn parse(text: &str, file: &str) -> Result<Loaded, Complaints> {
    let places = Places::of(text);
    let config = decode(text, file, &places).map_err(|complaint| Complaints(vec![complaint]))?;
    let loaded = Loaded {
        config,
        file: file.to_owned(),
        places,
    };
    let complaints: Vec<_> = faults(&loaded.config)
        .into_iter()
        .map(|fault| loaded.complaint(fault))
        .collect();
    if complaints.is_empty() {
        Ok(loaded)
    } else {
        Err(Complaints(complaints))
    }
}

fn decode(text: &str, file: &str, places: &Places) -> Result<Config, Complaint> {
    // A file of comments alone is an empty configuration.
    if text
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    {
        return Ok(Config::default());
    }
    let mut field = String::new();
    serde_saphyr::with_deserializer_from_str(text, |deserializer| {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            field = match error.path().to_string().as_str() {
                "." => String::new(),
                path => path.to_owned(),
            };
            error.into_inner()
        })
    })
    .map_err(|error| {
        let text = plain(&error.without_snippet().to_string());
        let place = error.location().map_or(0, |location| location.line());
        // That something is missing is only noticed where the item ends.
        let line = usize::try_from(place)
            .ok()
            .filter(|line| *line > 0 && !text.starts_with("missing field"))
            .unwrap_or_else(|| places.line(&field));
        Complaint {
            file: file.to_owned(),
            line,
            field: std::mem::take(&mut field),
            text,
        }
    })
}

/// The message without the place, which is said in front of it.
fn plain(message: &str) -> String {
    let message = message.lines().next().unwrap_or_default();
    let end = message.rfind(" at line ").unwrap_or(message.len());
    message[..end].trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(text: &str) -> String {
        parse(text, "c.yaml").expect_err(text).to_string()
    }

    #[test]
    fn an_empty_file_observes_everything() {
        for text in ["", "\n\n", "# nothing\n"] {
            assert_eq!(parse(text, "c.yaml").expect(text).config, Config::default());
        }
        assert_eq!(Config::default().observe.parents.include, ["*"]);
    }

    #[test]
    fn a_fault_is_said_with_file_line_and_field() {
        let text = "sub_interfaces:\n  - name: macv1\n    parent: eth0\n    mode: bridged\n";
        assert_eq!(
            complaint(text),
            "c.yaml:4: sub_interfaces[0].mode: \"bridged\" is no mode; there are private, vepa, bridge, passthru, source"
        );
    }

    #[test]
    fn unknown_keys_are_refused_with_those_there_are() {
        let said = complaint("limits:\n  sub_interfaces: 3\n  per_netns: 4\n");
        for word in ["c.yaml:3: limits", "per_netns", "per_namespace"] {
            assert!(said.contains(word), "{word:?} is not in: {said}");
        }
    }

    #[test]
    fn text_that_is_no_yaml_is_said_with_its_line() {
        let said = complaint("limits: {\nparents: [");
        assert!(said.starts_with("c.yaml:"), "{said}");
        assert!(!said.contains('\n'), "{said}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let said = complaint("sub_interfaces:\n  - name: macv1\n    parent: eth0\n");
        assert!(said.contains("sub_interfaces[0]") && said.contains("mode"), "{said}");
    }
}
