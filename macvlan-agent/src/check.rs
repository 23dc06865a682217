//! `check`: what this host is able to do, asked by trying and letting go again.

use std::{fmt, path::Path, process::ExitCode, sync::Arc};

use serde::Serialize;

use crate::{
    config::args::{Check, CheckOutput, KernelArgs},
    keeper,
    kernel::{
        attach::is_not_permitted,
        hooks::{HOOKS, Hook, Mechanism, NotAttached, Outcome, Reason, Wish},
        load::Kernel,
        room::Room,
        support::{self, CAPABILITIES, Module},
    },
    owners::{self, Sources},
    topology::{netns::Netns, statistics::Reader, watcher},
};

/// Everything works.
const ABLE: u8 = 0;
/// Nothing works.
const UNABLE: u8 = 1;
/// Something is missing.
const DEGRADED: u8 = 3;

#[derive(Serialize)]
struct HookReport {
    hook: &'static str,
    required: bool,
    able: bool,
    mechanism: Option<Mechanism>,
    reason: Option<Reason>,
    detail: Option<String>,
    lost_without: &'static str,
}

#[derive(Serialize)]
struct CapabilityReport {
    name: &'static str,
    present: bool,
    lost_without: &'static str,
}

/// What `check` found.
#[derive(Serialize)]
struct Report {
    verdict: &'static str,
    kernel: String,
    btf: bool,
    macvlan: Module,
    lockdown: String,
    capabilities: Vec<CapabilityReport>,
    hooks: Vec<HookReport>,
    parents: Vec<String>,
    sub_interfaces: usize,
    problems: Vec<String>,
    #[serde(skip)]
    exit: u8,
}

/// Asks, writes the answer, and says how to exit.
pub async fn run(arguments: &Check) -> anyhow::Result<ExitCode> {
    let report = gather(&arguments.kernel, arguments.containers.sources()).await;
    match arguments.output {
        CheckOutput::Json => crate::output::line(&serde_json::to_string_pretty(&report)?)?,
        CheckOutput::Table => crate::output::text(&report.to_string())?,
    }
    Ok(ExitCode::from(report.exit))
}

async fn gather(arguments: &KernelArgs, sources: Sources) -> Report {
    let mut report = Report {
        verdict: "",
        kernel: support::release(),
        btf: arguments.btf.exists(),
        macvlan: support::macvlan(),
        lockdown: support::lockdown(),
        capabilities: capabilities(),
        hooks: Vec::new(),
        parents: Vec::new(),
        sub_interfaces: 0,
        problems: Vec::new(),
        exit: ABLE,
    };
    match watcher::dump_once(Path::new("/run/netns").to_owned()).await {
        Ok((inventory, namespaces)) => {
            report.parents = inventory
                .parents
                .values()
                .map(|parent| parent.display.clone())
                .collect();
            report.sub_interfaces = inventory.sub_interfaces.len();
            report.problems.extend(
                inventory
                    .unreadable
                    .iter()
                    .map(|(label, why)| format!("namespace {label}: {why}")),
            );
            report.problems.extend(inventory.problems.iter().cloned());
            let own = Netns::own().map(|own| own.inode()).unwrap_or_default();
            let owners = owners::gather_once(&inventory, namespaces, own, sources).await;
            report.problems.extend(owners.problems);
        }
        Err(error) => report
            .problems
            .push(format!("the host's interfaces cannot be read: {error}")),
    }
    report.try_hooks(arguments);
    report.judge();
    report
}

fn capabilities() -> Vec<CapabilityReport> {
    let held = support::effective_capabilities();
    CAPABILITIES
        .iter()
        .map(|row| CapabilityReport {
            name: row.name,
            present: held >> row.number & 1 == 1,
            lost_without: row.lost_without,
        })
        .collect()
}

/// Reads the counters of the own namespace, as a try.
fn kernel_counters(own: &Arc<Netns>) -> Outcome {
    match Reader::default().read_in(own) {
        Ok(_) => Ok(Mechanism::Netlink),
        Err(error) => Err(NotAttached::new(
            Reason::NoAnswer,
            format!("{:#}", anyhow::Error::new(error)),
        )),
    }
}

impl Report {
    fn try_hooks(&mut self, arguments: &KernelArgs) {
        let own = match Netns::own() {
            Ok(own) => own,
            Err(error) => return self.cannot_run(arguments, Reason::NamespaceUnreadable, &error.to_string()),
        };
        let mut kernel = match Kernel::load(own.inode(), &arguments.btf, Room::default(), true) {
            Ok(kernel) => kernel,
            Err(error) => {
                let reason = if is_not_permitted(&error) {
                    Reason::NotPermitted
                } else {
                    Reason::LoadRefused
                };
                return self.cannot_run(arguments, reason, &format!("{:#}", anyhow::Error::new(error)));
            }
        };
        for row in HOOKS {
            let outcome = if arguments.wish(row.hook) == Wish::Off {
                Err(NotAttached::new(
                    Reason::TurnedOff,
                    format!("turned off by --hook.{}=off", row.name),
                ))
            } else if row.per_parent {
                Ok(crate::kernel::attach::classifier_mechanism())
            } else {
                match row.hook {
                    Hook::HandleFrame => kernel
                        .attach_handler(arguments.handle_frame)
                        .map(|handler| handler.mechanism),
                    Hook::FrameFree => kernel.attach_frame_free().map(|_| Mechanism::RawTracepoint),
                    _ => kernel_counters(&own),
                }
            };
            self.add(row.hook, arguments, &outcome);
        }
    }

    fn cannot_run(&mut self, arguments: &KernelArgs, reason: Reason, detail: &str) {
        for row in HOOKS {
            self.add(row.hook, arguments, &Err(NotAttached::new(reason, detail)));
        }
        self.problems.push(detail.to_owned());
        self.exit = UNABLE;
    }

    fn add(&mut self, hook: Hook, arguments: &KernelArgs, outcome: &Outcome) {
        let missing = outcome.as_ref().err();
        self.hooks.push(HookReport {
            hook: hook.name(),
            required: arguments.required(hook),
            able: outcome.is_ok(),
            mechanism: outcome.as_ref().ok().copied(),
            reason: missing.map(|missing| missing.reason),
            detail: missing.map(|missing| missing.detail.clone()),
            lost_without: hook.row().lost_without,
        });
    }

    fn judge(&mut self) {
        if let Some(note) = keeper::module_note() {
            self.problems.push(note.to_owned());
        }
        if self.parents.is_empty() {
            self.problems
                .push("there is no macvlan sub-interface, so nothing to attach to yet".to_owned());
        }
        let absent = matches!(self.macvlan, Module::Absent | Module::Loadable);
        let missing = |required: bool| self.hooks.iter().any(|hook| !hook.able && hook.required == required);
        if self.exit == ABLE && missing(true) {
            self.exit = UNABLE;
        } else if self.exit == ABLE && (missing(false) || absent) {
            self.exit = DEGRADED;
        }
        self.verdict = match self.exit {
            ABLE => "able",
            DEGRADED => "degraded",
            _ => "unable",
        };
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.exit {
            ABLE => "This host can run macvlan-agent with every hook.",
            DEGRADED => "This host can run macvlan-agent, degraded.",
            _ => "This host cannot run macvlan-agent.",
        };
        let word = |present| if present { "yes" } else { "no" };
        let macvlan = match self.macvlan {
            Module::BuiltIn => "built in",
            Module::Loaded => "loaded",
            Module::Loadable => "module not loaded",
            Module::Absent => "absent",
        };
        writeln!(out, "{verdict}\n")?;
        writeln!(out, "kernel            {}", self.kernel)?;
        writeln!(out, "BTF               {}", word(self.btf))?;
        writeln!(out, "macvlan           {macvlan}")?;
        writeln!(out, "lockdown          {}", self.lockdown)?;
        writeln!(
            out,
            "sub-interfaces    {} on {} parents",
            self.sub_interfaces,
            self.parents.len()
        )?;
        for capability in &self.capabilities {
            write!(out, "{:<17} {}", capability.name, word(capability.present))?;
            writeln!(
                out,
                "{}",
                if capability.present {
                    String::new()
                } else {
                    format!(": {}", capability.lost_without)
                }
            )?;
        }
        writeln!(out)?;
        for hook in &self.hooks {
            match (&hook.mechanism, &hook.detail) {
                (Some(mechanism), _) => writeln!(out, "{:<17} able, by {}", hook.hook, mechanism.label())?,
                (None, detail) => {
                    let reason = hook.reason.map_or("", Reason::label);
                    writeln!(
                        out,
                        "{:<17} not able: {reason}: {}",
                        hook.hook,
                        detail.as_deref().unwrap_or_default()
                    )?;
                    writeln!(out, "{:<17} without it {}", "", hook.lost_without)?;
                }
            }
        }
        for problem in &self.problems {
            writeln!(out, "\n{problem}.")?;
        }
        Ok(())
    }
}
