//! The queries of the dashboards, as Grafana asks them.

use std::collections::BTreeMap;

use serde_json::Value;

/// Each dashboard: its name and its JSON.
pub const DASHBOARDS: [(&str, &str); 3] = [
    ("overview", include_str!("../../dashboards/overview.json")),
    ("sub-interface", include_str!("../../dashboards/sub-interface.json")),
    ("agent-health", include_str!("../../dashboards/agent-health.json")),
];

/// A query of a panel.
#[derive(Clone, Debug)]
pub struct Query {
    /// Whose panel it is.
    pub dashboard: &'static str,
    /// The panel's title.
    pub panel: String,
    /// In `PromQL`, with Grafana's variables.
    pub expr: String,
    /// Whether it asks for numbers of now, and not for a graph.
    pub instant: bool,
}

/// Every query of every panel.
///
/// # Panics
/// When a dashboard is not what Grafana takes.
#[must_use]
pub fn queries() -> Vec<Query> {
    let mut queries = Vec::new();
    for (dashboard, text) in DASHBOARDS {
        let page: Value = serde_json::from_str(text).expect("a dashboard is JSON");
        for panel in page["panels"].as_array().expect("panels") {
            for target in panel["targets"].as_array().into_iter().flatten() {
                queries.push(Query {
                    dashboard,
                    panel: panel["title"].as_str().expect("a title").to_owned(),
                    expr: target["expr"].as_str().expect("an expression").to_owned(),
                    instant: target["instant"] == true,
                });
            }
        }
    }
    queries
}

/// The query with one value for each variable that is in `chosen`, and all for the others.
#[must_use]
pub fn with_variables(expr: &str, rate_interval: &str, chosen: &BTreeMap<&str, String>) -> String {
    let mut expr = expr
        .replace("$__rate_interval", rate_interval)
        .replace("$__range", "1h");
    for variable in ["interface", "instance", "parent", "netns", "job"] {
        let value = chosen.get(variable).map_or(".+", String::as_str);
        expr = expr.replace(&format!("\"${variable}\""), &format!("\"{value}\""));
    }
    expr
}
