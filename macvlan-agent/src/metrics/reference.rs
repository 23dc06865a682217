//! The table of metrics for people (`docs/METRICS.md`) and for programs.

use std::fmt::Write as _;

use super::catalog::{METRICS, Metric};
use crate::kernel::hooks::HOOKS;

/// The page.
#[must_use]
pub fn markdown() -> String {
    let mut page = String::from(
        "# Metrics\n\nMade by `macvlan-agent metrics` from the table in `macvlan-agent/src/metrics/catalog.rs`; \
         do not edit.\n\nrx and tx are seen from the sub-interface. An skb counts as the frames it stands for. \
         Series of a sub-interface carry `parent`, `interface` and `netns`; the rest is on \
         `macvlan_interface_info`, to be joined with\n`* on (job, instance, parent, interface, netns) group_left \
         (mode, mac) macvlan_interface_info`.\n\nAbout 30 series per sub-interface and 15 per parent. `process_*` \
         stand beside these.\n\n| metric | type | labels | needs | what |\n|---|---|---|---|---|\n",
    );
    for metric in METRICS {
        let kind = metric.kind.word();
        let labels = metric
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect::<Vec<_>>()
            .join(", ");
        let hooks = metric
            .hooks
            .iter()
            .map(|hook| format!("`{}`", hook.name()))
            .collect::<Vec<_>>()
            .join(", ");
        let _ = writeln!(
            page,
            "| `{}` | {kind} | {labels} | {hooks} | {} |",
            metric.name, metric.help
        );
    }
    page.push_str("\n## Hooks\n\n| hook | required | sees | without it |\n|---|---|---|---|\n");
    for row in HOOKS {
        let required = if row.required { "yes" } else { "no" };
        let _ = writeln!(
            page,
            "| `{}` | {required} | {} | {} |",
            row.name, row.sees, row.lost_without
        );
    }
    page
}

/// One row for programs.
#[derive(serde::Serialize)]
struct Row {
    name: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    hooks: Vec<&'static str>,
}

/// The table as JSON.
pub fn json() -> serde_json::Result<String> {
    let row = |metric: &Metric| Row {
        name: metric.name,
        kind: metric.kind.word(),
        labels: metric.labels,
        help: metric.help,
        hooks: metric.hooks.iter().map(|hook| hook.name()).collect(),
    };
    serde_json::to_string_pretty(&METRICS.iter().map(row).collect::<Vec<_>>()).map(|text| text + "\n")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_page_is_made_from_the_table() {
        let committed = include_str!("../../../docs/METRICS.md");
        let advice = "run `cargo run -p macvlan-agent -- metrics > docs/METRICS.md`";
        assert!(
            committed == super::markdown(),
            "docs/METRICS.md is not what the table says: {advice}"
        );
    }
}
