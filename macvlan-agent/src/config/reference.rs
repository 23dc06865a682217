//! What is made from the configuration's types: the schema, the page, and the example that both are checked against.

use std::fmt::Write as _;

use serde_json::Value;

use super::file::Config;

/// A configuration that has everything in it, with words on what it does.
pub const EXAMPLE: &str = include_str!("example.yaml");

/// The JSON Schema.
#[must_use]
pub fn schema() -> Value {
    let mut schema = schemars::schema_for!(Config);
    schema.insert("title".to_owned(), "Configuration of macvlan-agent".into());
    schema.to_value()
}

/// `docs/CONFIG.md`.
#[must_use]
pub fn markdown() -> String {
    let mut page = String::from(
        "# Configuration\n\nMade by `macvlan-agent config reference` from the types in \
         `macvlan-agent/src/config/file.rs`; do not edit. The file is YAML, `/etc/macvlan-agent/config.yaml` unless \
         `--config.file` says otherwise. `macvlan-agent config schema` prints its JSON Schema, for editors.\n\nA file \
         with a fault is refused as a whole, with the line, the field, what is wrong and what would be right; unknown \
         keys are faults.\n\n",
    );
    let schema = schema();
    section(&mut page, "the file", &schema);
    let Some(definitions) = schema.get("$defs").and_then(Value::as_object) else {
        return page;
    };
    for (name, definition) in definitions {
        if definition.get("properties").is_some() && name != "NetnsParts" {
            section(&mut page, name, definition);
        }
    }
    let _ = write!(page, "## Example\n\n```yaml\n{EXAMPLE}```\n");
    page
}

fn section(page: &mut String, name: &str, schema: &Value) {
    let _ = write!(page, "## {name}\n\n");
    if let Some(text) = schema.get("description").and_then(Value::as_str) {
        let _ = write!(page, "{}\n\n", one_line(text));
    }
    page.push_str("| key | type | default | what |\n|---|---|---|---|\n");
    let properties = schema.get("properties").and_then(Value::as_object);
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    for (key, property) in properties.into_iter().flatten() {
        let default = match property.get("default") {
            _ if required.contains(&key.as_str()) => "required".to_owned(),
            None | Some(Value::Null) => String::new(),
            Some(Value::Object(_)) => "see there".to_owned(),
            Some(value) => format!("`{value}`"),
        };
        let text = property.get("description").and_then(Value::as_str).unwrap_or_default();
        let _ = writeln!(
            page,
            "| `{key}` | {} | {default} | {} |",
            kind(property),
            one_line(text)
        );
    }
    page.push('\n');
}

fn one_line(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}

/// A property's type in words.
fn kind(property: &Value) -> String {
    if let Some(target) = property.get("$ref").and_then(Value::as_str) {
        let name = target.rsplit('/').next().unwrap_or(target);
        return name
            .strip_prefix("OneOrMore")
            .map_or_else(|| name.to_owned(), |of| format!("{} or list", of.to_lowercase()));
    }
    if let Some(choices) = property.get("anyOf").and_then(Value::as_array) {
        let words: Vec<_> = choices.iter().map(kind).filter(|word| word != "null").collect();
        return words.join(" or ");
    }
    match property.get("type") {
        Some(Value::String(word)) if word == "array" => {
            format!("list of {}", property.get("items").map(kind).unwrap_or_default())
        }
        Some(Value::String(word)) => word.clone(),
        Some(Value::Array(words)) => {
            let words: Vec<_> = words
                .iter()
                .filter_map(Value::as_str)
                .filter(|word| *word != "null")
                .collect();
            words.join(" or ")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load::parse;

    #[test]
    fn the_example_is_valid_and_has_every_key() {
        let loaded = parse(EXAMPLE, "example.yaml").unwrap_or_else(|error| panic!("{error}"));
        assert!(!loaded.config.shims.is_empty());
        let schema = schema();
        let definitions = schema["$defs"].as_object().expect("definitions");
        for definition in definitions.values().chain([&schema]) {
            for key in definition["properties"]
                .as_object()
                .into_iter()
                .flat_map(|map| map.keys())
            {
                assert!(EXAMPLE.contains(&format!("{key}:")), "{key} is not in the example");
            }
        }
    }

    #[test]
    fn the_committed_page_is_made_from_the_types() {
        let committed = include_str!("../../../docs/CONFIG.md");
        let advice = "run `cargo run -p macvlan-agent -- config reference > docs/CONFIG.md`";
        assert!(
            committed == markdown(),
            "docs/CONFIG.md is not what the types say: {advice}"
        );
    }

    #[test]
    fn the_schema_refuses_unknown_keys() {
        let schema = schema();
        assert_eq!(schema["additionalProperties"], Value::Bool(false));
        assert_eq!(
            schema["$defs"]["SubInterface"]["additionalProperties"],
            Value::Bool(false)
        );
    }
}
