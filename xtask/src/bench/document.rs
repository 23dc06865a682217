//! `docs/PERFORMANCE.md` and its pictures: made from the records alone, so that they say nothing that was not measured.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::Result;

use super::goals::{GOALS, Goal};
use super::measured::{Measured, Record};
use super::picture::{self, Caption};
use super::times::{Measure, Times};

const HEAD: &str = "\
<!-- Written by `cargo xtask bench`. -->

# What it costs

A frame costs the kernel some thousand instructions, and the agent's programs add to that. How many, is counted here, not
timed: `cargo xtask bench` boots each kernel in an emulator whose clock counts instructions, so the numbers are the same
on every computer, and a repetition differs by less than five. Instructions are not time: a cache miss costs more than
one, and an instruction of the kernel's is not dearer than one of ours. What users feel lies on real hardware between the
ratio of the instructions and nothing.

A frame has 60 bytes and is sent from a packet socket past its queue; where it ends a listener takes it. The wire is a
veth pair, the mode is bridge, there are two sub-interfaces.

| path | what is sent |
|---|---|
| `external` | from the wire to a sub-interface |
| `transmitted` | from a sub-interface to the wire |
| `sibling` | between two sub-interfaces, inside |
| `child_to_parent` | from a sub-interface to its parent: it leaves by the wire and is counted as an attempt |
| `merged` | as `external`, ten frames of TCP that were merged into one skb (GRO): what the skb costs |
| `unwanted` | as `external`, and nobody listens: the kernel gives the frame up, which `frame_free` looks at |

| set-up | what is attached to the parent |
|---|---|
| `none` | nothing: the other columns say what they add to this one |
| `tcx`, `clsact` | a program on each side that does nothing, by either mechanism: less no TC program can cost |
| `empty_fexit` | as `tcx`, and programs that do nothing at entry and return of macvlan's handler: less no exact count of what it returns can cost |
| `tc` | the agent with `--hook.handle_frame=off` |
| `kprobe` | the agent as it is by default where macvlan is a module |
| `fexit` | the agent with `--hook.handle_frame=fexit` |

`tests/vm/costs.toml` keeps the numbers. `cargo xtask test` measures 6.12 anew and fails where a path or a program costs
more than 3 % more.
";

const GOALS_HEAD: &str = "\
## Goals

What we want to reach, where physics ends, and what was measured. Goals 1 to 3 are instructions on Linux 6.12, path
`external`, from the tables below. All others were measured on one machine in one run of `cargo xtask bench`, whose sides
took turns; times move from machine to machine, so most goals are ratios. Goal 8, that counts are exact, is what the tests
hold (`conservation`, `no_loss`, `storm`, `matrix`).
";

const SIDES_HEAD: &str = "\
## What stands behind the goals

A side is told by its quartiles: a quarter of its values lies below the first number and a quarter above the last.
";

const PICTURES_HEAD: &str = "\
## How it grows
";

/// The pictures that there may be.
const PICTURES: [(&str, Caption); 4] = [
    (
        "frame_time",
        Caption {
            title: "Time of a frame from outside to a sub-interface",
            x: "sub-interfaces",
            y: "ns",
        },
    ),
    (
        "scrape-ms",
        Caption {
            title: "A whole scrape over loopback",
            x: "sub-interfaces",
            y: "ms",
        },
    ),
    (
        "memory-MB",
        Caption {
            title: "Memory, at most, after ten scrapes",
            x: "sub-interfaces",
            y: "MB",
        },
    ),
    (
        "creation",
        Caption {
            title: "Time to create one sub-interface",
            x: "sub-interfaces created at once",
            y: "µs",
        },
    ),
];

/// The page and its pictures, by path.
pub(super) struct Page {
    pub(super) files: BTreeMap<String, String>,
}

/// The set-ups in the order of the columns.
const SETUPS: [&str; 6] = ["tcx", "clsact", "empty_fexit", "tc", "kprobe", "fexit"];
const PATHS: [&str; 6] = [
    "external",
    "transmitted",
    "sibling",
    "child_to_parent",
    "merged",
    "unwanted",
];

/// The kernel that the goals are stated for.
const GOALS_KERNEL: &str = "6.12";

/// All of it.
pub(super) fn page(record: &Record, times: &Times) -> Result<Page> {
    let mut files = BTreeMap::new();
    let mut pictures = String::new();
    for (name, caption) in &PICTURES {
        if let Some(lines) = times.pictures.get(*name) {
            let file = format!("pictures/cost-{name}.svg");
            let _ = write!(pictures, "\n![{}]({file})\n", caption.title);
            files.insert(format!("docs/{file}"), picture::svg(caption, lines)?);
        }
    }
    let mut text = HEAD.to_owned();
    let _ = write!(text, "\n{}", goals(record, times));
    let _ = write!(text, "\n{PICTURES_HEAD}{pictures}");
    let _ = write!(text, "\n{SIDES_HEAD}{}", sides(times));
    for (name, measured) in &record.kernels {
        let _ = write!(text, "\n{}", tables(name, measured));
    }
    files.insert(super::DOCUMENT.to_owned(), text);
    Ok(Page { files })
}

/// The two tables of a kernel.
pub(super) fn tables(name: &str, measured: &Measured) -> String {
    let mut text = format!("## Linux {name}\n\nInstructions of one frame:\n\n| path | none |");
    for setup in SETUPS {
        let _ = write!(text, " {setup} |");
    }
    text.push_str("\n|---|---:|---:|---:|---:|---:|---:|---:|\n");
    for path in PATHS {
        let none = measured.frames.get(path).and_then(|setups| setups.get("none"));
        let _ = write!(text, "| `{path}` | {} |", none.map_or("–".to_owned(), u64::to_string));
        for setup in SETUPS {
            let added = measured.added(path, setup);
            let _ = write!(text, " {} |", added.map_or("–".to_owned(), |added| format!("+{added}")));
        }
        text.push('\n');
    }
    text.push_str("\n| program | instructions verified | bytes of machine code |\n|---|---:|---:|\n");
    let programs: BTreeSet<_> = measured.verified.keys().chain(measured.machine_code.keys()).collect();
    for program in programs {
        let of = |numbers: &BTreeMap<String, u64>| numbers.get(program).copied().unwrap_or(0);
        let _ = writeln!(
            text,
            "| `{program}` | {} | {} |",
            of(&measured.verified),
            of(&measured.machine_code)
        );
    }
    text
}

/// What is held against the goals, and what was not measured.
pub(super) fn goals(record: &Record, times: &Times) -> String {
    let mut text = format!("{GOALS_HEAD}\nMeasured on: {}.\n\n", times.machine);
    text.push_str("| # | what | unit | goal | impossible | measured | |\n|---|---|---|---:|---:|---:|---|\n");
    let mut limits = String::new();
    for goal in GOALS {
        let value = value(goal, record, times);
        let (shown, verdict) = match value {
            Some(value) if goal.bound.holds(value) => (rounded(value), "met"),
            Some(value) => (rounded(value), "not met"),
            None => ("–".to_owned(), "not measured"),
        };
        let (key, what, unit) = (goal.key, goal.what, goal.unit);
        let (bound, impossible) = (goal.bound.text(), goal.impossible.text());
        let _ = writeln!(
            text,
            "| {key} | {what} | {unit} | {bound} | {impossible} | {shown} | {verdict} |"
        );
        if verdict == "not met" && !goal.limit.is_empty() {
            let _ = writeln!(limits, "- **{key}**: {}", goal.limit);
        }
    }
    if !limits.is_empty() {
        let _ = write!(text, "\nWhat stands between the measured and the goal:\n\n{limits}");
    }
    if !times.faults.is_empty() {
        text.push_str("\nWhat did not come to its end, and why:\n\n");
    }
    for (part, fault) in &times.faults {
        let _ = writeln!(text, "- {part}: {}", fault.lines().next().unwrap_or_default());
    }
    text
}

/// The number that is held against a goal.
fn value(goal: &Goal, record: &Record, times: &Times) -> Option<f64> {
    let added = |setup| record.kernels.get(GOALS_KERNEL)?.added("external", setup);
    let number = |count: u64| u32::try_from(count).ok().map(f64::from);
    match goal.key {
        "1" => number(added("tc")?),
        "2" => number(added("fexit")?),
        "3" => {
            let alone = |setup| number(added(setup)?.saturating_sub(added("tc")?));
            Some(alone("fexit")? / alone("kprobe")?)
        }
        key => times.goals.get(key)?.value,
    }
}

/// The sides and notes of each goal.
fn sides(times: &Times) -> String {
    let mut text = String::new();
    for goal in GOALS {
        let Some(Measure { notes, sides, .. }) = times.goals.get(goal.key) else {
            continue;
        };
        if notes.is_empty() && sides.is_empty() {
            continue;
        }
        let _ = writeln!(text, "\n**{}**: {}.", goal.key, goal.what);
        if !sides.is_empty() {
            text.push_str("\n| side | quarter | half | three quarters |\n|---|---:|---:|---:|\n");
        }
        for (name, [low, median, high]) in sides {
            let [low, median, high] = [low, median, high].map(|value| rounded(*value));
            let _ = writeln!(text, "| {} | {low} | {median} | {high} |", name.replace('_', " "));
        }
        if !notes.is_empty() {
            text.push('\n');
        }
        for note in notes {
            let _ = writeln!(text, "- {note}");
        }
    }
    text
}

/// As many digits as mean something.
fn rounded(value: f64) -> String {
    let digits = match value.abs() {
        large if large >= 100.0 => 0,
        middle if middle >= 10.0 => 1,
        small if small >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::measured::{Measured, Record};
    use super::super::times::Times;
    use super::page;

    fn record(tc: u32) -> Record {
        let output = format!(
            "cost external none 2000\ncost external tcx 2180\ncost external tc {tc}\ncost external kprobe 4000\n\
             cost external fexit 2400\nprogram parent_ingress 900 1500\n"
        );
        Record {
            kernels: [("6.12".to_owned(), Measured::read(&output).unwrap())].into(),
        }
    }

    fn text(record: &Record, printed: &str) -> String {
        let mut times = Times::default();
        times.take_in(printed).unwrap();
        page(record, &times).unwrap().files["docs/PERFORMANCE.md"].clone()
    }

    #[test]
    fn a_goal_is_met_by_its_number_alone() {
        assert!(text(&record(2260), "").contains("| ≤ 260 | ≤ 188 | 260 | met |"));
        assert!(text(&record(2261), "").contains("| ≤ 260 | ≤ 188 | 261 | not met |"));
        assert!(text(&record(2261), "").contains("- **1**: "));
        assert!(text(&record(2260), "goal 19 39.99").contains("| ≥ 40 | ≥ 90 | 40 | not met |"));
        assert!(text(&record(2260), "goal 19 40").contains("| ≥ 40 | ≥ 90 | 40 | met |"));
        assert!(text(&record(2260), "").contains("| ≥ 40 | ≥ 90 | – | not measured |"));
        assert!(text(&Record::default(), "").contains("| ≤ 450 | ≤ 188 | – | not measured |"));
    }

    #[test]
    fn a_cell_says_what_is_added_or_nothing() {
        let page = text(&record(2260), "");
        assert!(page.contains("| `external` | 2000 | +180 | – | – | +260 | +2000 | +400 |"));
        assert!(page.contains("| `sibling` | – | – | – | – | – | – | – |"));
        assert!(page.contains("| `parent_ingress` | 900 | 1500 |"));
    }

    #[test]
    fn sides_notes_and_curves_stand_below() {
        let mut times = Times::default();
        let printed = "side 4 no_program 160.25 163 170\nnote 4 300 rounds\npoint frame_time none 10 163\n";
        times.take_in(printed).unwrap();
        let files = page(&record(2260), &times).unwrap().files;
        let text = &files["docs/PERFORMANCE.md"];
        assert!(text.contains("| no program | 160 | 163 | 170 |") && text.contains("- 300 rounds"));
        assert!(text.contains("(pictures/cost-frame_time.svg)"));
        assert!(files["docs/pictures/cost-frame_time.svg"].starts_with("<svg"));
    }
}
