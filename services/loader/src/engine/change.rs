//! Requests that change something: apply, delete, drain.

use super::{Engine, Inner, Options, Stage, journal::find};
use crate::{
    core::{
        build::build,
        downgrade::{Downgrade, downgrades},
        expand::{self, Expanded, Interfaces},
        plan::{Asked, ChainPlan, Step, plan},
        resolve::Wish,
        state::{Chain, Change, Journal, RuleChange, Wanted},
    },
    error::LoaderError,
};
use canopy_api::{
    ChainKey, Digest, Hook, InterfaceSelector, ProgramName, Target, XdpMode,
    wire::{
        Action, ApplyReply, ChainOutcome, DeleteRequest, ObservedChain, PlannedProgram,
        SelectorOutcome,
    },
};
use canopy_kernel::{ChainBuild, Kernel, LinkState, Observed, Prepared};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::PoisonError,
};

/// A request on its way.
struct Plan {
    items: Vec<Item>,
    rules: Vec<RuleChange>,
    selectors: Vec<SelectorOutcome>,
}

/// A chain of a request on its way.
struct Item {
    asked: Asked,
    plan: ChainPlan,
    build: Option<ChainBuild>,
    prepared: Option<Prepared>,
}

impl<K: Kernel> Engine<K> {
    /// Makes chains so.
    pub fn apply(&self, wishes: Vec<Wish>, options: &Options) -> Result<ApplyReply, LoaderError> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.change(wishes, options)
    }

    /// Removes a chain, or one program of it.
    pub fn delete(
        &self,
        request: &DeleteRequest,
        options: &Options,
    ) -> Result<ApplyReply, LoaderError> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let target = Target { interface: request.interface.clone(), hook: request.hook };
        let wanted = self.without(&target, request.program.as_ref())?;
        let wish = Wish {
            target,
            wanted,
            path: String::new(),
            program_paths: BTreeMap::new(),
            notes: Vec::new(),
        };
        self.change(vec![wish], options)
    }

    /// What remains of what is described for a target without one program, or nothing.
    fn without(
        &self,
        target: &Target,
        program: Option<&ProgramName>,
    ) -> Result<Option<Wanted>, LoaderError> {
        let inner = self.lock();
        let state = &inner.state;
        let known = match target.interface.name() {
            None => state.rules.get(target).map(|rule| &rule.wanted),
            Some(name) => {
                let key = ChainKey { interface: name.clone(), hook: target.hook };
                match state.chains.get(&key) {
                    Some(Chain { rule: Some(selector), .. }) => {
                        return Err(LoaderError::OfSelector { key, selector: selector.clone() });
                    }
                    Some(record) => Some(&record.wanted),
                    None => {
                        let seen = self.parts.kernel.observe().map_err(LoaderError::kernel)?;
                        // A chain that is in the kernel and not in the state can be removed as a
                        // whole.
                        if program.is_none() && attached(&seen, &key).is_some() {
                            return Ok(None);
                        }
                        None
                    }
                }
            }
        };
        let Some(wanted) = known else {
            let by_name = state.chains.iter().filter(|(_, chain)| chain.rule.is_none());
            let known = by_name
                .map(|(key, _)| key.to_string())
                .chain(state.rules.keys().map(ToString::to_string))
                .collect();
            return Err(LoaderError::NoChain { target: target.clone(), known });
        };
        let Some(program) = program else { return Ok(None) };
        let mut rest = wanted.clone();
        rest.programs.retain(|p| p.name != *program);
        if rest.programs.len() == wanted.programs.len() {
            let known = rest.programs.iter().map(|p| p.name.to_string()).collect();
            return Err(LoaderError::NoProgram {
                target: target.clone(),
                program: program.clone(),
                known,
            });
        }
        Ok((!rest.programs.is_empty()).then_some(rest))
    }

    fn change(&self, wishes: Vec<Wish>, options: &Options) -> Result<ApplyReply, LoaderError> {
        let mut plan = self.plan(wishes, options)?;
        self.stage(Stage::Planned);
        let result = self.prepare(&mut plan.items).and_then(|()| {
            self.stage(Stage::Prepared);
            if options.dry_run { Ok(BTreeMap::new()) } else { self.switch(&plan, options) }
        });
        let mut inner = self.lock();
        for item in &plan.items {
            if let Some(build) = &item.build {
                inner.preparing.remove(&(build.key.clone(), build.generation));
            }
        }
        // What was prepared and not attached goes; after a success there is nothing left.
        if options.dry_run || result.is_err() {
            self.sweep_builds(&mut inner, &plan.items);
        }
        let after = result?;
        if !options.dry_run {
            self.parts.packages.retain(&digests(&inner));
        }
        Ok(ApplyReply {
            host: self.parts.host.clone(),
            generation: inner.state.generation,
            dry_run: options.dry_run,
            chains: plan.items.into_iter().map(|item| outcome(item, &after)).collect(),
            selectors: plan.selectors,
        })
    }

    /// Whether a change would be taken now.
    pub fn admitted(&self, options: &Options) -> Result<(), LoaderError> {
        self.admit(&self.lock(), options)
    }

    /// Programs that would go back to an older version, on whichever interface.
    pub fn downgrades(
        &self,
        wishes: Vec<Wish>,
        options: &Options,
    ) -> Result<Vec<Downgrade>, LoaderError> {
        let inner = self.lock();
        let expanded = self.expand(&inner, wishes, options)?;
        Ok(downgrades(&inner.state, &expanded.asked))
    }

    /// The chains that wishes come to, on the interfaces that are there.
    fn expand(
        &self,
        inner: &Inner,
        wishes: Vec<Wish>,
        options: &Options,
    ) -> Result<Expanded, LoaderError> {
        let selectors =
            inner.state.rules.keys().chain(wishes.iter().map(|wish| &wish.target)).cloned();
        let interfaces = self.interfaces(selectors).map_err(LoaderError::kernel)?;
        for wish in wishes.iter().filter(|wish| wish.wanted.is_some()) {
            let Some(name) = wish.target.interface.name() else { continue };
            if !interfaces.all.iter().any(|interface| interface.name == *name) {
                return Err(LoaderError::NoInterface {
                    name: name.clone(),
                    path: below(&wish.path, "interface"),
                    known: interfaces.all.iter().map(|known| known.name.to_string()).collect(),
                });
            }
        }
        let author = (&options.by, self.seconds());
        expand::expand(&inner.state, &interfaces, wishes, author).map_err(LoaderError::Ambiguous)
    }

    fn plan(&self, wishes: Vec<Wish>, options: &Options) -> Result<Plan, LoaderError> {
        let mut inner = self.lock();
        self.settle_journal(&mut inner);
        self.admit(&inner, options)?;
        let Expanded { asked, rules, selectors } = self.expand(&inner, wishes, options)?;
        let selectors = selectors
            .into_iter()
            .map(|(target, interfaces)| SelectorOutcome {
                action: rule_action(&inner, &rules, &target),
                interface: target.interface,
                hook: target.hook,
                interfaces,
            })
            .collect();
        let seen = self.parts.kernel.observe().map_err(LoaderError::kernel)?;
        let plans = plan(&inner.state, &seen, &asked);
        let mut items = Vec::new();
        for (asked, plan) in asked.into_iter().zip(plans) {
            let build = match (&plan.step, &asked.wanted) {
                (Step::Build, Some(wanted)) => {
                    Some(self.lay_out(&mut inner, &seen, &asked.key, wanted)?)
                }
                (
                    Step::Build | Step::Nothing | Step::Attach(_) | Step::Note(_) | Step::Remove,
                    _,
                ) => None,
            };
            items.push(Item { asked, plan, build, prepared: None });
        }
        let builds = items.iter().filter_map(|item| item.build.as_ref());
        inner.preparing.extend(builds.map(|build| (build.key.clone(), build.generation)));
        Ok(Plan { items, rules, selectors })
    }

    /// The interfaces of the host, with what these selectors ask about them.
    pub(super) fn interfaces(
        &self,
        targets: impl IntoIterator<Item = Target>,
    ) -> Result<Interfaces, canopy_kernel::KernelError> {
        let routed = |target: Target| target.interface == InterfaceSelector::DefaultRoute;
        let default_route = if targets.into_iter().any(routed) {
            self.parts.kernel.default_route()?
        } else {
            Vec::new()
        };
        Ok(Interfaces { all: self.parts.kernel.interfaces()?, default_route })
    }

    /// Whether changes are taken at all.
    #[allow(clippy::unused_self, reason = "reads as a question to the engine")]
    fn admit(&self, inner: &Inner, options: &Options) -> Result<(), LoaderError> {
        no_journal(inner)?;
        if inner.state.drained {
            return Err(LoaderError::Drained);
        }
        match options.expected_generation {
            Some(expected) if expected != inner.state.generation => {
                Err(LoaderError::Generation { expected, current: inner.state.generation })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Gives a new generation its number and lays it out.
    pub(super) fn lay_out(
        &self,
        inner: &mut Inner,
        seen: &[Observed],
        key: &ChainKey,
        wanted: &Wanted,
    ) -> Result<ChainBuild, LoaderError> {
        let pinned = find(seen, key).and_then(|seen| seen.generations.iter().max().copied());
        let generation = inner.state.last_build.max(pinned.unwrap_or(0)) + 1;
        let packages = self.packages(wanted.programs.iter().map(|p| p.digest.clone()));
        let previous = inner.state.chains.get(key).map(|chain| &chain.wanted);
        let build = build(key, generation, wanted, previous, &packages)?;
        inner.state.last_build = generation;
        Ok(build)
    }

    /// Loads every new generation; attaches nothing.
    fn prepare(&self, items: &mut [Item]) -> Result<(), LoaderError> {
        for item in items {
            let Some(build) = &item.build else { continue };
            let prepared = self.parts.kernel.prepare(build).map_err(|source| {
                let path = match &source {
                    canopy_kernel::KernelError::Refused { member: Some(member), .. } => item
                        .asked
                        .program_paths
                        .get(member)
                        .cloned()
                        .unwrap_or_else(|| item.asked.path.clone()),
                    canopy_kernel::KernelError::InterfaceNotFound { .. } => {
                        below(&item.asked.path, "interface")
                    }
                    _ => item.asked.path.clone(),
                };
                LoaderError::Kernel { path, source: Box::new(source) }
            })?;
            item.prepared = Some(prepared);
        }
        Ok(())
    }

    /// Journals, switches, reads back, commits.
    fn switch(
        &self,
        Plan { items, rules, .. }: &Plan,
        options: &Options,
    ) -> Result<BTreeMap<ChainKey, Option<ObservedChain>>, LoaderError> {
        let mut inner = self.lock();
        let seen = self.parts.kernel.observe().map_err(LoaderError::kernel)?;
        let now = self.seconds();
        let mut changes = Vec::new();
        let mut so = BTreeMap::new();
        for item in items {
            let key = &item.asked.key;
            let old = inner.state.chains.get(key);
            let to = match item.plan.step {
                Step::Nothing => {
                    so.insert(key.clone(), attached(&seen, key).cloned());
                    continue;
                }
                Step::Build => item.build.as_ref().map(|build| build.generation),
                Step::Attach(generation) | Step::Note(generation) => Some(generation),
                Step::Remove => None,
            };
            let record = match (&item.asked.wanted, to) {
                (Some(wanted), Some(to)) => Some(Chain {
                    rule: item.asked.rule.clone(),
                    ..record(old, wanted, to, &item.plan, now, options)
                }),
                _ => None,
            };
            changes.push(Change {
                key: key.clone(),
                from: from(old, &seen, key),
                to,
                from_mode: old.map_or(XdpMode::Best, |old| old.wanted.xdp_mode),
                record,
            });
        }
        if changes.is_empty() && rules.is_empty() {
            return Ok(so);
        }
        let desired_changes =
            !rules.is_empty() || items.iter().any(|item| item.plan.desired_changes);
        let journal = Journal {
            generation: inner.state.generation + u64::from(desired_changes),
            drained: false,
            changes,
            rules: rules.clone(),
            failed: false,
        };
        let mut after = self.carry_out(&mut inner, &journal, &seen)?;
        after.append(&mut so);
        Ok(after)
    }

    /// Removes what a request prepared and nothing came of.
    fn sweep_builds(&self, inner: &mut Inner, items: &[Item]) {
        for build in
            items.iter().filter(|item| item.prepared.is_some()).filter_map(|i| i.build.as_ref())
        {
            let running = self
                .parts
                .kernel
                .observe()
                .ok()
                .and_then(|seen| attached(&seen, &build.key).map(|chain| chain.generation));
            if running == Some(build.generation) || inner.state.needs(&build.key, build.generation)
            {
                continue;
            }
            if let Err(error) = self.parts.kernel.discard(&build.key, build.generation) {
                tracing::warn!(key = %build.key, generation = build.generation, %error, "pins stay for later");
            }
        }
    }

    /// Detaches everything and keeps the intent, or brings it back.
    pub fn drain(&self, undo: bool, dry_run: bool) -> Result<ApplyReply, LoaderError> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut inner = self.lock();
        self.settle_journal(&mut inner);
        no_journal(&inner)?;
        let seen = self.parts.kernel.observe().map_err(LoaderError::kernel)?;
        let drained = !undo;
        let unchanged = inner.state.drained == drained;
        let mut changes = Vec::new();
        let mut outcomes = Vec::new();
        let mut absent = Vec::new();
        for (key, chain) in &inner.state.chains {
            let now = find(&seen, key);
            let attachable = now.is_some_and(|now| {
                now.generations.contains(&chain.running)
                    && !matches!(now.state, LinkState::InterfaceMissing)
            });
            let attached = attached(&seen, key).map(|chain| chain.generation);
            let (action, line) = match (unchanged, drained) {
                (true, _) => (Action::Unchanged, None),
                (false, true) => (Action::Removed, Some("detach; the intent is kept".to_owned())),
                (false, false) => {
                    (Action::Created, Some(format!("attach generation {} again", chain.running)))
                }
            };
            if !unchanged && (drained || attachable) {
                changes.push(Change {
                    key: key.clone(),
                    from: attached.filter(|generation| *generation == chain.running),
                    to: (!drained).then_some(chain.running),
                    from_mode: chain.wanted.xdp_mode,
                    record: Some(chain.clone()),
                });
            } else if !unchanged {
                absent.push(key.clone());
            }
            outcomes.push(ChainOutcome {
                interface: key.interface.clone(),
                hook: key.hook,
                action,
                steps: line.into_iter().collect(),
                notes: Vec::new(),
                programs: if drained { Vec::new() } else { planned(&chain.wanted, key.hook) },
                observed: None,
            });
        }
        if !dry_run && !unchanged {
            let journal = Journal {
                generation: inner.state.generation,
                drained,
                changes,
                rules: Vec::new(),
                failed: false,
            };
            let after = self.carry_out(&mut inner, &journal, &seen)?;
            for outcome in &mut outcomes {
                let key = ChainKey { interface: outcome.interface.clone(), hook: outcome.hook };
                outcome.observed = after.get(&key).cloned().flatten();
                if absent.contains(&key) {
                    outcome.notes.push(
                        "its interface or its pins are not there; it is built again when it can be"
                            .to_owned(),
                    );
                }
            }
        }
        Ok(ApplyReply {
            host: self.parts.host.clone(),
            generation: inner.state.generation,
            dry_run,
            chains: outcomes,
            selectors: Vec::new(),
        })
    }
}

/// Nothing new begins while an earlier change is in between.
pub(super) fn no_journal(inner: &Inner) -> Result<(), LoaderError> {
    if inner.state.journal.is_some() { Err(LoaderError::Unsettled) } else { Ok(()) }
}

/// The digests the state names.
pub(super) fn digests(inner: &Inner) -> BTreeSet<Digest> {
    inner.state.programs().map(|program| program.digest.clone()).collect()
}

/// What a request does to a selector.
fn rule_action(inner: &Inner, rules: &[RuleChange], target: &Target) -> Action {
    let change = rules.iter().find(|change| change.target == *target);
    match (change.map(|change| &change.rule), inner.state.rules.contains_key(target)) {
        (None, _) => Action::Unchanged,
        (Some(None), _) => Action::Removed,
        (Some(Some(_)), true) => Action::Updated,
        (Some(Some(_)), false) => Action::Created,
    }
}

fn attached<'a>(seen: &'a [Observed], key: &ChainKey) -> Option<&'a ObservedChain> {
    match &find(seen, key)?.state {
        LinkState::Attached(chain) => Some(chain),
        LinkState::Replaced { .. } | LinkState::Detached | LinkState::InterfaceMissing => None,
    }
}

/// The generation a change starts from: what the state says runs, if it is there to come back to;
/// for a chain the state does not know, what is attached.
pub(super) fn from(old: Option<&Chain>, seen: &[Observed], key: &ChainKey) -> Option<u64> {
    match old {
        Some(old) => Some(old.running),
        None => attached(seen, key).map(|chain| chain.generation),
    }
}

fn record(
    old: Option<&Chain>,
    wanted: &Wanted,
    running: u64,
    plan: &ChainPlan,
    now: u64,
    options: &Options,
) -> Chain {
    let same = |name: &ProgramName, digest: &Digest| {
        let old = old?;
        let program = old.wanted.programs.iter().find(|p| p.name == *name)?;
        (program.digest == *digest).then(|| old.since.get(name).copied())?
    };
    let since = wanted
        .programs
        .iter()
        .map(|p| (p.name.clone(), same(&p.name, &p.digest).unwrap_or(now)))
        .collect();
    let (changed, changed_by) = match old {
        Some(old) if !plan.desired_changes => (old.changed, old.changed_by.clone()),
        Some(_) | None => (now, options.by.clone()),
    };
    Chain {
        wanted: wanted.clone(),
        running,
        changed,
        changed_by,
        restored: old.map_or(0, |old| old.restored),
        since,
        rule: None,
    }
}

fn below(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

pub(super) fn planned(wanted: &Wanted, hook: Hook) -> Vec<PlannedProgram> {
    wanted
        .programs
        .iter()
        .map(|program| PlannedProgram {
            name: program.name.clone(),
            package: program.package.clone(),
            version: program.version.to_string(),
            digest: program.digest.clone(),
            program: program.program.clone(),
            priority: program.priority,
            proceed_on: program.proceed_on.names(hook),
            config: program.config.clone(),
        })
        .collect()
}

fn outcome(item: Item, after: &BTreeMap<ChainKey, Option<ObservedChain>>) -> ChainOutcome {
    let Item { asked, plan, build, prepared } = item;
    let observed = after.get(&asked.key).cloned().flatten();
    let mut steps = plan.lines;
    match plan.step {
        Step::Nothing | Step::Note(_) => {}
        Step::Build => {
            let (generation, members) =
                build.as_ref().map_or((0, 0), |build| (build.generation, build.members.len()));
            let verified = prepared.as_ref().map_or(0, |p| p.verified_instructions);
            steps.push(format!(
                "load generation {generation}: {members} program(s), {verified} verified instructions"
            ));
            steps.push(match plan.action {
                Action::Updated => "replace what is attached in one step".to_owned(),
                Action::Created | Action::Unchanged | Action::Removed => "attach it".to_owned(),
            });
        }
        Step::Attach(generation) => steps.push(format!("attach generation {generation} again")),
        Step::Remove => steps.push("detach".to_owned()),
    }
    let mut notes = asked.notes;
    notes.extend(prepared.into_iter().flat_map(|prepared| prepared.notes));
    let generic = observed.as_ref().is_some_and(|chain| chain.mode == "generic");
    let mode = asked.wanted.as_ref().map(|wanted| wanted.xdp_mode);
    if generic && asked.key.hook == Hook::Xdp && mode == Some(XdpMode::Best) {
        notes.push(format!(
            "{} runs XDP in generic mode (slower): its driver has no native XDP",
            asked.key.interface
        ));
    }
    ChainOutcome {
        interface: asked.key.interface,
        hook: asked.key.hook,
        action: plan.action,
        steps,
        notes,
        programs: asked.wanted.as_ref().map_or_else(Vec::new, |w| planned(w, asked.key.hook)),
        observed,
    }
}
