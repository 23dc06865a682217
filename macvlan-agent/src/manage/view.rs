//! What was done or is to be done, as programs and people read it: one form for the commands, the control socket and the
//! log.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::{
    apply::{Done, Outcome},
    plan::{State, Tally},
    record::Spec,
    step::Step,
};
use crate::{
    config::{file::SubInterface, values::Mac},
    output::visible,
};

/// The whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutcomeView {
    /// Whether anything was or is to be changed.
    pub changed: bool,
    /// Each sub-interface and shim.
    pub items: Vec<ItemView>,
    /// What was or is to be removed.
    pub removed: Vec<RemovedView>,
    /// What was or is to be done about VLAN devices.
    pub parents: Vec<String>,
    /// What could not be done, beside the items.
    pub failures: Vec<String>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemView {
    /// Its id.
    pub id: String,
    /// `NETNS/NAME`, or the name alone in the agent's own namespace.
    pub name: String,
    /// `ready`, `pending` or `failed`.
    pub state: String,
    /// Why it is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What had happened to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// What was or is to be done.
    pub steps: Vec<StepView>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepView {
    /// `create`, `delete`, `set`, `add` or `remove`.
    pub action: String,
    /// What.
    pub field: String,
    /// What it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What it is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The same as a line.
    pub text: String,
}

/// Something that went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedView {
    /// What people call it.
    pub name: String,
    /// Why.
    pub because: String,
}

impl From<&Outcome> for OutcomeView {
    fn from(outcome: &Outcome) -> Self {
        Self {
            changed: outcome.changes(),
            items: outcome.items.iter().map(ItemView::from).collect(),
            removed: outcome
                .removed
                .iter()
                .map(|(name, because)| RemovedView {
                    name: name.clone(),
                    because: because.clone(),
                })
                .collect(),
            parents: outcome.parents.clone(),
            failures: outcome.failures.clone(),
        }
    }
}

impl From<&Done> for ItemView {
    fn from(done: &Done) -> Self {
        Self {
            id: done.id.clone(),
            name: done.label.clone(),
            state: done.state.word().to_owned(),
            reason: done.state.reason().map(str::to_owned),
            found: done.found.clone(),
            steps: done.steps.iter().map(|step| step_view(step, &done.spec)).collect(),
        }
    }
}

fn step_view(step: &Step, spec: &Spec) -> StepView {
    let text = match (step, spec) {
        (Step::Create, Spec::SubInterface(spec)) => format!("create {}", described(spec)),
        (Step::Create, Spec::Shim(spec)) => format!("create a shim on {}", spec.parent),
        _ => step.to_string(),
    };
    let (field, from, to) = step.parts();
    StepView {
        action: step.action().to_owned(),
        field: field.to_owned(),
        from,
        to,
        text,
    }
}

/// A sub-interface in a line.
fn described(spec: &SubInterface) -> String {
    let mut text = format!("{} on {}, mode {}", spec.kind, spec.parent, spec.mode);
    let mut say = |what: &str, value: String| {
        let _ = write!(text, ", {what} {value}");
    };
    if let Some(mac) = spec.mac {
        say("mac", mac.to_string());
    }
    if let Some(mtu) = spec.mtu {
        say("mtu", mtu.to_string());
    }
    for address in &spec.addresses {
        say("address", address.to_string());
    }
    for gateway in &spec.gateway.0 {
        say("gateway", gateway.to_string());
    }
    for route in &spec.routes {
        say("route", route.to.to_string());
    }
    for flag in &spec.flags {
        say("flag", flag.to_string());
    }
    if !spec.source_macs.is_empty() {
        let macs: Vec<_> = spec.source_macs.iter().map(Mac::to_string).collect();
        say("source_macs", macs.join(" "));
    }
    text
}

impl OutcomeView {
    /// Whether something could not be done.
    #[must_use]
    pub fn failed(&self) -> bool {
        !self.failures.is_empty() || self.items.iter().any(|item| item.state == "failed")
    }

    /// For people; `done` or only planned.
    #[must_use]
    pub fn text(&self, done: bool) -> String {
        let mut lines = String::new();
        let mut tally = [0_usize; 3];
        for removed in &self.removed {
            let _ = writeln!(lines, "- {}: {}", visible(&removed.name), removed.because);
        }
        for line in &self.parents {
            let _ = writeln!(lines, "{}", visible(line));
        }
        for item in &self.items {
            let (made, deleted) = (item.does("create"), item.does("delete"));
            let sign = match item.state.as_str() {
                "failed" => "!",
                "pending" => "?",
                _ if made && deleted => "-/+",
                _ if made => "+",
                _ => "~",
            };
            let name = visible(&item.name);
            if let Some(found) = &item.found {
                let _ = writeln!(lines, "{sign} {name}: {}", visible(found));
            }
            if let Some(reason) = &item.reason {
                let _ = writeln!(lines, "{sign} {name}: {}: {}", item.state, visible(reason));
            } else {
                for step in &item.steps {
                    let _ = writeln!(lines, "{sign} {name}: {}", visible(&step.text));
                }
            }
            if item.state == "ready" && !item.steps.is_empty() {
                tally[usize::from(!made)] += 1;
            } else if item.state == "ready" {
                tally[2] += 1;
            }
        }
        for failure in &self.failures {
            let _ = writeln!(lines, "! {}", visible(failure));
        }
        let count = |state: &str| self.items.iter().filter(|item| item.state == state).count();
        let words = if done {
            ["made", "changed", "removed"]
        } else {
            ["to make", "to change", "to remove"]
        };
        let _ = writeln!(
            lines,
            "{} {}, {} {}, {} {}; {} pending, {} failed, {} as they should be",
            tally[0],
            words[0],
            tally[1],
            words[1],
            self.removed.len(),
            words[2],
            count("pending"),
            count("failed") + self.failures.len(),
            tally[2],
        );
        lines
    }
}

impl ItemView {
    fn does(&self, action: &str) -> bool {
        self.steps.iter().any(|step| step.action == action)
    }
}

/// How many there are of each state.
#[must_use]
pub fn tally(outcome: &Outcome) -> Tally {
    let states: Vec<&State> = outcome.items.iter().map(|item| &item.state).collect();
    Tally::of(&states)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_what_happens_and_a_sum() {
        let step = |action: &str, text: &str| StepView {
            action: action.to_owned(),
            field: String::new(),
            from: None,
            to: None,
            text: text.to_owned(),
        };
        let item = |name: &str, state: &str, reason: Option<&str>, steps: Vec<StepView>| ItemView {
            id: String::new(),
            name: name.to_owned(),
            state: state.to_owned(),
            reason: reason.map(str::to_owned),
            found: None,
            steps,
        };
        let view = OutcomeView {
            changed: true,
            items: vec![
                item(
                    "net1/a",
                    "ready",
                    None,
                    vec![step("create", "create macvlan on eth0, mode bridge")],
                ),
                item("net1/b", "ready", None, vec![step("set", "mode: vepa -> bridge")]),
                item("net2/c", "pending", Some("there is no network namespace"), Vec::new()),
                item("d\u{1b}", "ready", None, Vec::new()),
            ],
            ..OutcomeView::default()
        };
        assert_eq!(
            view.text(false),
            "+ net1/a: create macvlan on eth0, mode bridge\n~ net1/b: mode: vepa -> bridge\n? net2/c: pending: there is \
             no network namespace\n1 to make, 1 to change, 0 to remove; 1 pending, 0 failed, 1 as they should be\n"
        );
    }
}
