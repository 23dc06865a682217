//! Attaching programs to their hooks, and letting go.
//!
//! What concerns a parent works in the calling thread's namespace: the agent sees to it that this is the parent's.

use std::{os::fd::AsFd as _, path::Path};

use aya::{
    programs::{
        KProbe, LinkOrder, Program, ProgramError, RawTracePoint, TcAttachType,
        kprobe::{KProbeLink, KProbeLinkId},
        raw_trace_point::RawTracePointLink,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions},
    },
    util::KernelVersion,
};

use macvlan_agent_ebpf::abi::label::Lost;

use super::{
    clsact,
    hooks::{HandlerWish, Hook, Mechanism, NotAttached, Outcome, Reason},
    load::{Kernel, LoadError, chain, classifier, is_denied, os_error},
    tracing_link::{self, Side, Target, TracingError, TracingLink},
};

/// The function that `handle_frame` watches.
pub const HANDLER: &str = "macvlan_handle_frame";

/// The two links of `handle_frame`; dropping them detaches.
pub struct Handler {
    /// By what they are attached.
    pub mechanism: Mechanism,
    links: HandlerLinks,
}

enum HandlerLinks {
    Probes { _links: [KProbeLink; 2] },
    Typed([TracingLink; 2]),
}

/// The link of `frame_free`; dropping it detaches.
pub struct FrameFree {
    _link: RawTracePointLink,
}

/// The programs on one parent.
pub struct Parent {
    ifindex: u32,
    links: Vec<SchedClassifierLink>,
    /// Whether its clsact qdisc was made by us.
    made_clsact: bool,
    /// What became of each hook.
    pub outcomes: Vec<(Hook, Outcome)>,
}

impl Kernel {
    /// Attaches `handle_frame`. The return first: an entry without a return would count as unknown.
    pub fn attach_handler(&mut self, wish: HandlerWish) -> Result<Handler, NotAttached> {
        if let Some(reason) = self.unreadable() {
            return Err(reason.clone());
        }
        let typed = wish == HandlerWish::Fexit || self.facts.built_in_handler.is_some();
        let links = match typed.then(|| self.attach_typed()) {
            Some(Ok(links)) => HandlerLinks::Typed(links),
            // Asked for by name it is no matter of taste.
            Some(Err(missing)) if wish == HandlerWish::Fexit => return Err(missing),
            Some(Err(missing)) => self.attach_probes().map_err(|probes| NotAttached {
                detail: format!("{}; nor by fexit: {}", probes.detail, missing.detail),
                ..probes
            })?,
            None => self.attach_probes()?,
        };
        self.counts().set_handler_attached(true);
        Ok(Handler {
            mechanism: match links {
                HandlerLinks::Probes { .. } => Mechanism::Kprobe,
                HandlerLinks::Typed(_) => Mechanism::Fexit,
            },
            links,
        })
    }

    fn attach_probes(&mut self) -> Result<HandlerLinks, NotAttached> {
        if !Path::new("/sys/bus/event_source/devices/kprobe").exists() {
            return Err(NotAttached::new(
                Reason::NoKprobes,
                "this kernel is built without kprobes (CONFIG_KPROBES)",
            ));
        }
        let returned = self.attach_probe("handle_frame_return")?;
        let entry = self.attach_probe("handle_frame")?;
        Ok(HandlerLinks::Probes {
            _links: [entry, returned],
        })
    }

    fn attach_typed(&self) -> Result<[TracingLink; 2], NotAttached> {
        let target = match self.facts.built_in_handler {
            Some(id) => Target::of_kernel(id),
            None => Target::find(HANDLER, "macvlan").map_err(|error| typed_refused(&error))?,
        };
        let object = self.direct.object();
        let attach = |program, side| {
            tracing_link::attach(object.bytes(), &self.maps, program, side, &target)
                .map_err(|error| typed_refused(&error))
        };
        let returned = attach("handle_frame_exit", Side::Exit)?;
        let entry = attach("handle_frame_entry", Side::Entry)?;
        Ok([entry, returned])
    }

    /// Attaches `frame_free`.
    pub fn attach_frame_free(&mut self) -> Result<FrameFree, NotAttached> {
        if let Some(reason) = self.unreadable() {
            return Err(reason.clone());
        }
        let program: &mut RawTracePoint = self
            .core
            .program_mut("frame_free")
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| NotAttached::new(Reason::LoadRefused, LoadError::Missing("frame_free").to_string()))?;
        if program.fd().is_err() {
            program.load().map_err(|error| not_loaded(&error))?;
        }
        let link = program.attach("kfree_skb").map_err(|error| refused(&error))?;
        let link = program
            .take_link(link)
            .map_err(|error| NotAttached::new(Reason::AttachRefused, chain(&error)))?;
        Ok(FrameFree { _link: link })
    }

    /// Runs of a hook's programs that were missed: what the kernel says it left out, or what we found missing.
    pub fn missed(&self, hook: Hook, handler: Option<&Handler>) -> u64 {
        match hook {
            Hook::HandleFrame => {
                let said = match handler.map(|handler| &handler.links) {
                    Some(HandlerLinks::Typed(links)) => links.iter().map(TracingLink::missed).sum(),
                    Some(HandlerLinks::Probes { .. }) => {
                        self.missed_by("handle_frame") + self.missed_by("handle_frame_return")
                    }
                    None => 0,
                };
                let counts = self.counts();
                said.max(counts.lost(Lost::Entries) + counts.lost(Lost::Returns))
            }
            Hook::FrameFree => self.missed_by("frame_free"),
            Hook::ParentIngress | Hook::ParentEgress | Hook::KernelCounters => 0,
        }
    }

    fn missed_by(&self, program: &str) -> u64 {
        let descriptor = match self.core.program(program) {
            Some(Program::KProbe(program)) => program.fd(),
            Some(Program::RawTracePoint(program)) => program.fd(),
            _ => return 0,
        };
        descriptor.map_or(0, |descriptor| {
            tracing_link::missed_runs(descriptor.as_fd()).unwrap_or(0)
        })
    }

    /// Says that `handle_frame` is gone: from now on what is delivered is inferred.
    pub fn handler_detached(&self) {
        self.counts().set_handler_attached(false);
    }

    fn attach_probe(&mut self, name: &'static str) -> Result<KProbeLink, NotAttached> {
        let program: &mut KProbe = self
            .core
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| NotAttached::new(Reason::LoadRefused, LoadError::Missing(name).to_string()))?;
        if program.fd().is_err() {
            program.load().map_err(|error| not_loaded(&error))?;
        }
        let link: KProbeLinkId = program.attach(HANDLER, 0).map_err(|error| probe_refused(&error))?;
        program
            .take_link(link)
            .map_err(|error| NotAttached::new(Reason::AttachRefused, chain(&error)))
    }

    /// Attaches `hooks` to the parent `ifindex` named `name` in the calling thread's namespace, whose inode is `netns`.
    pub fn attach_parent(&mut self, netns: u32, ifindex: u32, name: &str, hooks: &[Hook]) -> Parent {
        let mut parent = Parent {
            ifindex,
            links: Vec::new(),
            made_clsact: false,
            outcomes: Vec::new(),
        };
        for &hook in hooks {
            let outcome = self.attach_classifier(netns, name, hook, &mut parent);
            parent.outcomes.push((hook, outcome));
        }
        parent
    }

    fn attach_classifier(&mut self, netns: u32, name: &str, hook: Hook, parent: &mut Parent) -> Outcome {
        if nix::net::if_::if_nametoindex(name).ok() != Some(parent.ifindex) {
            return Err(NotAttached::new(
                Reason::AttachRefused,
                format!("the interface {name} was renamed or removed"),
            ));
        }
        let instance = self.instance_of(netns).map_err(|error| match error {
            LoadError::NotPermitted => NotAttached::new(
                Reason::NamespaceUnreadable,
                "parents in other namespaces need CAP_SYS_ADMIN",
            ),
            other => NotAttached::new(Reason::LoadRefused, chain(&other)),
        })?;
        let program = classifier(instance, hook.name())
            .map_err(|error| NotAttached::new(Reason::LoadRefused, error.to_string()))?;
        let side = if hook == Hook::ParentIngress {
            TcAttachType::Ingress
        } else {
            TcAttachType::Egress
        };
        let mechanism = classifier_mechanism();
        let options = if mechanism == Mechanism::Tcx {
            TcAttachOptions::TcxOrder(LinkOrder::default())
        } else {
            ensure_clsact(name, parent)?;
            TcAttachOptions::Netlink(NlOptions::default())
        };
        let link = program
            .attach_with_options(name, side, options)
            .map_err(|error| refused(&error))?;
        let link = program
            .take_link(link)
            .map_err(|error| NotAttached::new(Reason::AttachRefused, chain(&error)))?;
        parent.links.push(link);
        Ok(mechanism)
    }

    /// Takes our programs off a parent. In the parent's namespace again; where that is gone or cannot be joined, use
    /// [`Parent::forget`].
    pub fn detach_parent(&self, parent: Parent) {
        let Parent {
            ifindex,
            links,
            made_clsact,
            ..
        } = parent;
        drop(links);
        let Ok(index) = i32::try_from(ifindex) else { return };
        if !made_clsact {
            return;
        }
        match clsact::in_use(index) {
            Ok(false) => {
                if let Err(error) = clsact::remove(index) {
                    tracing::debug!(ifindex, %error, "the clsact qdisc stays");
                }
            }
            Ok(true) => tracing::info!(ifindex, "somebody else uses the clsact qdisc that we made: it stays"),
            Err(error) => tracing::debug!(ifindex, %error, "cannot tell whether the clsact qdisc is in use: it stays"),
        }
    }

    /// Unloads what served a namespace that has no parents any more.
    pub fn forget_namespace(&mut self, netns: u32) {
        self.forget_instance(netns);
    }
}

impl Parent {
    /// A parent whose namespace could not be joined.
    #[must_use]
    pub fn not_attached(ifindex: u32, hooks: &[Hook], why: &NotAttached) -> Self {
        let outcomes = hooks.iter().map(|hook| (*hook, Err(why.clone()))).collect();
        Self {
            ifindex,
            links: Vec::new(),
            made_clsact: false,
            outcomes,
        }
    }

    /// Whether every hook is attached.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.outcomes.iter().all(|(_, outcome)| outcome.is_ok())
    }

    /// Lets go of a parent that is gone with its namespace: a filter is removed by interface index, and that index
    /// may be another interface's in the namespace that we are in.
    pub fn forget(self) {
        for link in self.links {
            std::mem::forget(link);
        }
    }
}

fn ensure_clsact(name: &str, parent: &mut Parent) -> Result<(), NotAttached> {
    let index = i32::try_from(parent.ifindex).unwrap_or(0);
    if clsact::present(index).unwrap_or(false) {
        return Ok(());
    }
    match tc::qdisc_add_clsact(name) {
        Ok(()) => {
            parent.made_clsact = true;
            Ok(())
        }
        Err(error) if os_error(&error) == Some(libc::EEXIST) => Ok(()),
        Err(error) => Err(NotAttached::new(
            if is_denied(&error) {
                Reason::NotPermitted
            } else {
                Reason::AttachRefused
            },
            format!("cannot add a clsact qdisc (module sch_ingress): {}", chain(&error)),
        )),
    }
}

fn not_loaded(error: &ProgramError) -> NotAttached {
    if is_denied(error) {
        NotAttached::new(
            Reason::NotPermitted,
            "programs that read the kernel's memory need CAP_BPF and CAP_PERFMON, and no lockdown of confidentiality",
        )
    } else {
        NotAttached::new(Reason::LoadRefused, chain(error))
    }
}

fn typed_refused(error: &TracingError) -> NotAttached {
    let reason = match error {
        TracingError::NoFunction { .. } if !super::support::macvlan_present() => Reason::ModuleAbsent,
        TracingError::NoFunction { .. } => Reason::NoSymbol,
        TracingError::Object(_) => Reason::LoadRefused,
        other if is_denied(other) => Reason::NotPermitted,
        TracingError::Load { .. } => Reason::LoadRefused,
        TracingError::Types { .. } | TracingError::Attach { .. } => Reason::AttachRefused,
    };
    NotAttached::new(reason, chain(error))
}

fn refused(error: &ProgramError) -> NotAttached {
    let reason = if is_denied(error) {
        Reason::NotPermitted
    } else {
        Reason::AttachRefused
    };
    NotAttached::new(reason, chain(error))
}

fn probe_refused(error: &ProgramError) -> NotAttached {
    match os_error(error) {
        Some(libc::ENOENT | libc::EINVAL) if !super::support::macvlan_present() => NotAttached::new(
            Reason::ModuleAbsent,
            "the macvlan module is not loaded; the hook is armed when it is",
        ),
        Some(libc::ENOENT) => NotAttached::new(Reason::NoSymbol, format!("this kernel has no function {HANDLER}")),
        _ => refused(error),
    }
}

/// Whether an error says that nothing can be done without more rights.
#[must_use]
pub fn is_not_permitted(error: &LoadError) -> bool {
    matches!(error, LoadError::NotPermitted)
}

/// How TC programs are attached here: devices have lists of programs of their own since 6.6 (commit e420bed02507).
#[must_use]
pub fn classifier_mechanism() -> Mechanism {
    let tcx = KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0));
    if tcx { Mechanism::Tcx } else { Mechanism::Clsact }
}
