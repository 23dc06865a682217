//! Keeps the kernel side in step with the inventory: attaches to parents as they appear and lets go as they go, arms
//! `handle_frame` when macvlan is there, fills the tables. Everything here may block.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    panic::resume_unwind,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use macvlan_agent_ebpf::abi::Counter;

use crate::{
    config::args::KernelArgs,
    inference::{ApparentlyDown, Inference},
    kernel::{
        attach::{self, FrameFree, Handler},
        directory::Directory,
        drop_reason::Symbols,
        hooks::{HOOKS, Hook, Mechanism, NotAttached, Outcome, Reason, Wish},
        load::{Kernel, LoadError, chain},
        support,
    },
    kernel_counters::KernelCounters,
    lives::Lives,
    pace::{Pace, Stint},
    snapshot::{Collected, HookState, ParentSample, Snapshot, SubInterfaceSample, wanted},
    topology::{
        inventory::{Inventory, Parent, SubInterface},
        link::{LinkKey, Mode},
        watcher::Namespaces,
    },
};

/// A parent with our programs on it.
struct Attached {
    name: String,
    programs: attach::Parent,
}

/// How often a scrape is read anew at most because a frame was on its way while we looked.
const READINGS: usize = 3;

/// Runs of the handler's programs that were missed.
#[derive(Default)]
struct Missed {
    /// By programs that are gone.
    before: u64,
    /// As last told.
    handler: u64,
}

/// Which macvlan's handler was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Located {
    NotYet,
    /// That of the module with this inode; none where macvlan is built in, or absent.
    In(Option<u64>),
}

/// The kernel side and what it is attached to.
pub struct Keeper {
    kernel: Kernel,
    directory: Directory,
    arguments: KernelArgs,
    inventory: Arc<Inventory>,
    /// Its sub-interfaces in a row, once they were asked for: they are walked through several times.
    subs: Option<Arc<[Arc<SubInterface>]>>,
    namespaces: Namespaces,
    parents: BTreeMap<LinkKey, Attached>,
    handler: Option<Handler>,
    handler_outcome: Outcome,
    /// The module that there was when that was last looked for; none where macvlan is built in, or absent.
    present: Option<u64>,
    /// The module that the handler was armed in: another one has another inode.
    module: Option<u64>,
    /// Whether `frame_free` was told where the handler of this module is, armed or not, and all else that decides.
    located: Located,
    /// They are being read.
    symbols: Option<JoinHandle<Symbols>>,
    /// When to try again to arm it, and how often that was done: a module that is just coming may not be ready.
    again: Option<(Instant, u32)>,
    frame_free: Result<FrameFree, NotAttached>,
    missed: Missed,
    verdicts_seen: bool,
    kernel_counters: KernelCounters,
    inferences: HashMap<u64, Inference>,
    lives: Lives,
    pace: Pace,
}

impl Keeper {
    /// Begins with the programs loaded and nothing attached; `symbols` are being read where there are parents already.
    pub fn new(
        arguments: KernelArgs,
        mut kernel: Kernel,
        namespaces: Namespaces,
        symbols: Option<JoinHandle<Symbols>>,
    ) -> Result<Self, LoadError> {
        let directory = Directory::new(&mut kernel)?;
        let kernel_counters = KernelCounters::new(arguments.wish(Hook::KernelCounters), kernel.queue_is_silent());
        let frame_free = if arguments.wish(Hook::FrameFree) == Wish::Off {
            Err(turned_off(Hook::FrameFree))
        } else {
            kernel.attach_frame_free()
        };
        log_outcome(Hook::FrameFree, "", &outcome_of(&frame_free));
        let mut keeper = Self {
            kernel,
            directory,
            arguments,
            inventory: Arc::default(),
            subs: None,
            namespaces,
            parents: BTreeMap::new(),
            handler: None,
            handler_outcome: Err(NotAttached::new(Reason::ModuleAbsent, "not tried yet")),
            present: None,
            module: None,
            located: Located::NotYet,
            symbols,
            again: None,
            frame_free,
            missed: Missed::default(),
            verdicts_seen: false,
            kernel_counters,
            inferences: HashMap::new(),
            lives: Lives::default(),
            pace: Pace::default(),
        };
        keeper.follow_module();
        Ok(keeper)
    }

    /// The programs, for their log.
    pub fn kernel(&mut self) -> &mut Kernel {
        &mut self.kernel
    }

    /// Follows a change of the inventory; says when to come again.
    pub fn follow(&mut self, inventory: Arc<Inventory>) -> Option<Instant> {
        let stint = Stint::begin();
        self.lives.follow(&self.inventory, &inventory);
        let (before, after) = (&self.inventory.sub_interfaces, &inventory.sub_interfaces);
        let differences = before.differences(after).map(|(id, _)| id);
        let limited = self.inventory.over_limit.symmetric_difference(&inventory.over_limit);
        let touched: BTreeSet<u64> = differences
            .chain(limited.copied())
            .chain(self.lives.take_over())
            .collect();
        self.inventory = inventory;
        self.subs = None;
        let namespaces = &self.namespaces;
        self.directory.retain_namespaces(|netns| namespaces.contains(netns));
        self.lives.retain_namespaces(|netns| namespaces.contains(netns));
        if self.symbols.is_some() {
            self.locate();
        } else if self.is_to_be_located() {
            // Meanwhile the kernel makes us wait for its attaching.
            self.symbols = Some(thread::spawn(Symbols::read));
        }
        // Slots first: a sub-interface counts from its first frame.
        self.fill_tables(&touched);
        self.let_go();
        self.follow_module();
        self.attach_new();
        self.locate();
        // Attaching waits for the kernel: by now it may be time, and then the kernel's counters have a beginning.
        self.directory.collect_credits(&self.kernel);
        self.follow_counters(&touched);
        self.pace.done(&stint);
        self.next_due()
    }

    /// How soon another inventory is to be followed.
    #[must_use]
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// Does what is due: adds what was counted before sub-interfaces were known, and takes those to be down that did
    /// not come up. Says when to come again.
    pub fn catch_up(&mut self) -> Option<Instant> {
        self.directory.collect_credits(&self.kernel);
        // A module that is being removed deletes its links first, and is still there when we hear of that.
        self.follow_module();
        self.locate();
        let is_over = self.lives.settle();
        let touched = self.lives.take_over();
        if self.kernel_counters.awaits() || !touched.is_empty() {
            self.follow_counters(&touched);
        }
        if is_over {
            self.fill_tables(&touched);
            self.let_go();
        }
        self.next_due()
    }

    /// Looks at these sub-interfaces, and at all parents.
    fn fill_tables(&mut self, touched: &BTreeSet<u64>) {
        let lives = &self.lives;
        let wanted = wanted(&self.inventory, touched, lives.lingering(), |id| lives.is_coming_up(id));
        if let Err(error) = self.directory.apply(&self.kernel, wanted, |id| lives.is_away(id)) {
            tracing::error!(error = %chain(&error), "the kernel's tables are not complete");
        }
    }

    fn follow_counters(&mut self, touched: &BTreeSet<u64>) {
        let lives = &self.lives;
        self.kernel_counters.follow(
            (&self.inventory, touched),
            &self.namespaces,
            (&self.kernel, &mut self.directory),
            |id| lives.is_away(id),
        );
    }

    fn next_due(&self) -> Option<Instant> {
        let again = self.again.map(|(due, _)| due);
        [self.directory.next_credit(), self.lives.next_due(), again]
            .into_iter()
            .flatten()
            .min()
    }

    /// Joins who there is with what was counted. Where our count does not lie between two readings of the kernel's, all is
    /// read again: a frame may be between the two while we look.
    pub fn snapshot(&mut self) -> Snapshot {
        for _ in 1..READINGS {
            let snapshot = self.read();
            if snapshot.sub_interfaces.iter().all(|each| each.error.unwrap_or(0) == 0) {
                return snapshot;
            }
        }
        self.read()
    }

    fn subs(&mut self) -> Arc<[Arc<SubInterface>]> {
        let all = &self.inventory.sub_interfaces;
        let subs = self.subs.get_or_insert_with(|| all.values().cloned().collect());
        Arc::clone(subs)
    }

    fn read(&mut self) -> Snapshot {
        let begun = Instant::now();
        let subs = self.subs();
        let early = self.down_inferred(&subs);
        // The kernel's counters before ours: what arrives in between makes multicast late, never too much.
        let asked = Instant::now();
        self.kernel_counters.read(&subs, &self.namespaces);
        let mut waited = asked.elapsed();
        let mut snapshot = Snapshot::join(&self.inventory, &subs, &mut self.directory, &self.kernel);
        let asked = Instant::now();
        // Of mode source there is nothing to hold ours against.
        let samples = snapshot
            .sub_interfaces
            .iter()
            .filter(|each| each.link.mode != Mode::Source);
        let samples = samples.filter_map(|each| Some((&*each.link, each.sample.as_ref()?)));
        self.kernel_counters.read_again(&subs, &self.namespaces, samples);
        waited += asked.elapsed();
        for each in &mut snapshot.sub_interfaces {
            self.compare(each, early.as_ref());
        }
        for each in &mut snapshot.parents {
            each.queue_full = self.queue_full(each);
        }
        snapshot.hooks = self.hooks();
        snapshot.required = HOOKS.iter().map(|row| self.arguments.required(row.hook)).collect();
        snapshot.verdicts_seen = self.verdicts_seen;
        snapshot.missed = self.missed();
        let collected = |collector, success, took: Duration| Collected {
            collector,
            success,
            seconds: took.as_secs_f64(),
        };
        snapshot.collected = vec![
            collected("counts", true, begun.elapsed().saturating_sub(waited)),
            collected("kernel_counters", self.kernel_counters.outcome().is_ok(), waited),
        ];
        snapshot
    }

    /// Holds one's counts against the kernel's.
    fn compare(&mut self, each: &mut SubInterfaceSample, early: Option<&HashMap<u64, ApparentlyDown>>) {
        let Some(sample) = &mut each.sample else { return };
        each.kernel = self.kernel_counters.of(each.link.id, sample);
        // Of most nothing was ever counted so.
        let settles = each.link.mode != Mode::Source && sample.totals.has_rest();
        if let (Some(kernel), Some(early), true) = (&each.kernel, early, settles) {
            let early = early.get(&each.link.id).copied().unwrap_or_default();
            let mut nothing = Inference::default();
            let inference = if early == ApparentlyDown::default() {
                self.inferences.get_mut(&each.link.id).unwrap_or(&mut nothing)
            } else {
                self.inferences.entry(each.link.id).or_default()
            };
            inference.settle(early, sample, kernel);
        }
        // Of mode source the handler says nothing, and what waits for its owner is not here yet.
        if each.link.mode != Mode::Source && !self.directory.awaits_credit(each.link.id) {
            each.error = self.kernel_counters.error(each.link.id, sample);
        }
    }

    fn queue_full(&mut self, parent: &ParentSample) -> Option<u64> {
        let sample = parent.sample.as_ref()?;
        self.frame_free.as_ref().ok()?;
        if self.kernel.queue_is_silent() {
            let otherwise = sample.totals.at(Counter::OtherwiseDroppedSkbs, 0);
            return self.kernel_counters.queue_full(parent.link.key, otherwise);
        }
        Some(sample.totals.at(Counter::BroadcastQueueFullFrames, 0))
    }

    /// Runs that hooks missed; a handler that is armed anew begins at 0, and what was told stays told.
    fn missed(&mut self) -> Vec<(Hook, u64)> {
        let handler = self.kernel.missed(Hook::HandleFrame, self.handler.as_ref());
        self.missed.handler = self.missed.handler.max(self.missed.before + handler);
        let mut missed = Vec::new();
        if self.verdicts_seen {
            missed.push((Hook::HandleFrame, self.missed.handler));
        }
        if self.frame_free.is_ok() {
            missed.push((Hook::FrameFree, self.kernel.missed(Hook::FrameFree, None)));
        }
        missed
    }

    /// The counts of those that may have been taken to be down, while no handler says what became of their frames.
    fn down_inferred(&mut self, subs: &[Arc<SubInterface>]) -> Option<HashMap<u64, ApparentlyDown>> {
        let lives = &self.lives;
        self.inferences
            .retain(|id, _| self.inventory.sub_interfaces.contains_key(id) || lives.is_away(*id));
        if self.handler.is_some() {
            return None;
        }
        let links = subs.iter().filter(|link| link.mode != Mode::Source);
        let counted = links.filter_map(|link| {
            let early = ApparentlyDown::of(self.directory.rare(link.id, ApparentlyDown::COUNTERS)?);
            (early != ApparentlyDown::default()).then_some((link.id, early))
        });
        Some(counted.collect())
    }

    fn hooks(&self) -> Vec<HookState> {
        let mut hooks = Vec::new();
        for (key, attached) in &self.parents {
            // One that lingers is nobody's parent any more.
            let Some(parent) = self.inventory.parents.get(key) else {
                continue;
            };
            hooks.extend(attached.programs.outcomes.iter().map(|(hook, outcome)| HookState {
                hook: *hook,
                parent: parent.display.clone(),
                outcome: outcome.clone(),
                required: self.arguments.required(*hook),
            }));
        }
        // Without macvlan there is nothing that the handler could miss.
        let waits = self.inventory.sub_interfaces.is_empty()
            && self
                .handler_outcome
                .as_ref()
                .is_err_and(|missing| missing.reason == Reason::ModuleAbsent);
        hooks.push(HookState {
            hook: Hook::HandleFrame,
            parent: String::new(),
            outcome: self.handler_outcome.clone(),
            required: self.arguments.required(Hook::HandleFrame) && !waits,
        });
        hooks.push(HookState {
            hook: Hook::FrameFree,
            parent: String::new(),
            outcome: outcome_of(&self.frame_free),
            required: self.arguments.required(Hook::FrameFree),
        });
        hooks.push(HookState {
            hook: Hook::KernelCounters,
            parent: String::new(),
            outcome: self.kernel_counters.outcome(),
            required: self.arguments.required(Hook::KernelCounters),
        });
        hooks
    }

    /// Takes the programs off parents that are gone, or have been without a sub-interface for a while.
    fn let_go(&mut self) {
        let gone: Vec<LinkKey> = self
            .parents
            .keys()
            .filter(|key| !self.inventory.parents.contains_key(key) && !self.lives.lingers(**key))
            .copied()
            .collect();
        for key in gone {
            self.detach(key);
        }
    }

    fn detach(&mut self, key: LinkKey) {
        let Some(attached) = self.parents.remove(&key) else {
            return;
        };
        let name = attached.name.clone();
        self.take_off(key, attached);
        tracing::info!(parent = name, "let go of the parent");
        if !self.parents.keys().any(|other| other.netns == key.netns) {
            self.kernel.forget_namespace(key.netns);
        }
    }

    fn take_off(&self, key: LinkKey, attached: Attached) {
        let Attached { name, programs } = attached;
        let Some(Ok(netns)) = self.namespaces.open(key.netns) else {
            return programs.forget();
        };
        let mut programs = Some(programs);
        let kernel = &self.kernel;
        let detached = netns.run(|| programs.take().map(|programs| kernel.detach_parent(programs)));
        if let Some(programs) = programs {
            programs.forget();
        }
        if let Err(error) = detached {
            tracing::debug!(parent = name, %error, "the parent's namespace is gone");
        }
    }

    /// Attaches to new parents, and tries again where something was refused: its cause may have been a moment's.
    fn attach_new(&mut self) {
        let inventory = Arc::clone(&self.inventory);
        for (key, parent) in &inventory.parents {
            let before = match self.parents.remove(key) {
                Some(attached) if attached.programs.is_whole() => {
                    self.parents.insert(*key, attached);
                    continue;
                }
                Some(attached) => {
                    let before = attached.programs.outcomes.clone();
                    self.take_off(*key, attached);
                    before
                }
                None => Vec::new(),
            };
            if let Some(programs) = self.attach(*key, parent) {
                for (hook, outcome) in programs.outcomes.iter().filter(|news| !before.contains(news)) {
                    log_outcome(*hook, &parent.display, outcome);
                }
                let name = parent.display.clone();
                self.parents.insert(*key, Attached { name, programs });
            }
        }
    }

    /// None where the parent's namespace is not known any more.
    fn attach(&mut self, key: LinkKey, parent: &Parent) -> Option<attach::Parent> {
        let hooks: Vec<Hook> = HOOKS
            .iter()
            .filter(|row| row.per_parent && self.arguments.wish(row.hook) != Wish::Off)
            .map(|row| row.hook)
            .collect();
        let netns = self.namespaces.open(key.netns)?;
        let kernel = &mut self.kernel;
        let attach = || kernel.attach_parent(key.netns, key.ifindex, &parent.name, &hooks);
        let attached = netns.and_then(|netns| netns.run(attach));
        Some(attached.unwrap_or_else(|error| {
            let missing = NotAttached::new(Reason::NamespaceUnreadable, chain(&error));
            attach::Parent::not_attached(key.ifindex, &hooks, &missing)
        }))
    }

    /// Whether it matters where things are decided, and is not known of this module.
    fn is_to_be_located(&self) -> bool {
        !self.inventory.parents.is_empty() && self.located != Located::In(self.present)
    }

    /// Looks where things are decided, whether or not we can probe there: `frame_free` tells by its place what is freed.
    fn locate(&mut self) {
        let reading = self.symbols.take();
        if !self.is_to_be_located() {
            return;
        }
        self.located = Located::In(self.present);
        let read_before = reading.map(|reading| reading.join().unwrap_or_else(|panic| resume_unwind(panic)));
        let mut symbols = read_before.unwrap_or_else(Symbols::read);
        if self.handler.is_some() && !symbols.have_handler() {
            // A module that was just coming did not have its symbols yet.
            symbols = Symbols::read();
        }
        if let Err(error) = self.kernel.locate(&symbols) {
            tracing::error!(error = %chain(&error), "causes of drops cannot be told by their place");
        }
    }

    /// Arms the handler when macvlan comes, and again when its module was replaced: a probe does not survive that.
    pub fn follow_module(&mut self) {
        let module = fs::metadata("/sys/module/macvlan").map(|meta| meta.ino()).ok();
        self.present = module;
        if self.arguments.wish(Hook::HandleFrame) == Wish::Off {
            self.handler_outcome = Err(turned_off(Hook::HandleFrame));
            return;
        }
        if self.handler.is_some() {
            if self.module == module {
                return;
            }
            tracing::info!("the macvlan module was removed or replaced");
            self.missed.before = self.missed.handler;
            self.handler = None;
            self.kernel.handler_detached();
        }
        if self.refused_for_good() {
            return;
        }
        let before = self.handler_outcome.as_ref().err().map(|missing| missing.reason);
        match self.kernel.attach_handler(self.arguments.handle_frame) {
            Ok(handler) => {
                self.handler_outcome = Ok(handler.mechanism);
                self.handler = Some(handler);
                self.module = module;
                self.again = None;
                self.verdicts_seen = true;
                if !self.kernel.handler_is_located() {
                    self.located = Located::NotYet;
                }
                log_outcome(Hook::HandleFrame, "", &self.handler_outcome);
            }
            Err(missing) => {
                let news = before != Some(missing.reason) || missing.detail != self.detail();
                self.handler_outcome = Err(missing);
                self.again = self.later(module.is_some());
                if news {
                    log_outcome(Hook::HandleFrame, "", &self.handler_outcome);
                }
            }
        }
    }

    /// Whether trying again cannot help: this kernel will not become another.
    fn refused_for_good(&self) -> bool {
        let never = [Reason::NoKprobes, Reason::NoField, Reason::SelfTestFailed];
        self.handler_outcome
            .as_ref()
            .is_err_and(|missing| never.contains(&missing.reason))
    }

    /// When to try again, where the module is there and could not be armed: soon, then more and more rarely.
    fn later(&self, present: bool) -> Option<(Instant, u32)> {
        let tries = self.again.map_or(0, |(_, tries)| tries);
        let wait = Duration::from_millis(50).saturating_mul(1 << tries);
        (present && tries < 7).then(|| (Instant::now() + wait, tries + 1))
    }

    /// A module of macvlan's came or went: look anew, and for a while again.
    pub fn module_changed(&mut self) -> Option<Instant> {
        self.again = None;
        self.follow_module();
        self.locate();
        self.next_due()
    }

    fn detail(&self) -> String {
        self.handler_outcome
            .as_ref()
            .err()
            .map(|missing| missing.detail.clone())
            .unwrap_or_default()
    }

    /// Lets go of everything.
    pub fn stop(&mut self) {
        self.handler = None;
        self.frame_free = Err(NotAttached::new(Reason::TurnedOff, "the agent has stopped"));
        for key in self.parents.keys().copied().collect::<Vec<_>>() {
            self.detach(key);
        }
    }
}

fn turned_off(hook: Hook) -> NotAttached {
    NotAttached::new(Reason::TurnedOff, format!("turned off by --hook.{}=off", hook.name()))
}

fn outcome_of(link: &Result<FrameFree, NotAttached>) -> Outcome {
    match link {
        Ok(_) => Ok(Mechanism::RawTracepoint),
        Err(missing) => Err(missing.clone()),
    }
}

fn log_outcome(hook: Hook, parent: &str, outcome: &Outcome) {
    match outcome {
        Ok(mechanism) => tracing::info!(hook = hook.name(), parent, mechanism = mechanism.label(), "attached"),
        Err(missing) => tracing::warn!(
            hook = hook.name(),
            parent,
            reason = missing.reason.label(),
            detail = missing.detail,
            lost = hook.row().lost_without,
            "not attached"
        ),
    }
}

/// What must be said of macvlan's module when the agent starts.
#[must_use]
pub fn module_note() -> Option<&'static str> {
    match support::macvlan() {
        support::Module::BuiltIn | support::Module::Loaded => None,
        support::Module::Loadable => Some("the macvlan module is not loaded: waiting for the first sub-interface"),
        support::Module::Absent => Some("this kernel has no macvlan: waiting for it"),
    }
}
