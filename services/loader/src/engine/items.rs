//! A request as items: each interface is changed whole or is as it was, and the reply says which. A
//! request that is to be atomic is one item.

use super::{
    Engine, Inner, Options, Proposal, Stage,
    admission::Survey,
    change::{digests, from, no_journal},
    in_time,
    journal::{After, find},
    tell::{failure, outcome, rule_action},
};
use crate::{
    core::{
        admission::Displaced,
        build::build,
        group::group,
        plan::{Asked, ChainPlan, Step, plan},
        resolve::Wish,
        state::{Chain, Change, Journal, RuleChange, Wanted},
    },
    error::LoaderError,
};
use canopy_api::{
    ChainKey, Digest, InterfaceSelector, ProgramName, Target, XdpMode,
    wire::{Action, ApplyReply, ChainOutcome, ObservedChain, SelectorOutcome},
};
use canopy_kernel::{ChainBuild, Kernel, KernelError, LinkState, Observed, Prepared};

/// A request on its way.
struct Plan {
    groups: Vec<Group>,
    /// Each rule that changes.
    rules: Vec<RuleChange>,
    selectors: Vec<SelectorOutcome>,
    /// Chains whose interfaces it takes.
    displaced: Vec<Displaced>,
}

/// Chains and rules that change together.
pub(super) struct Group {
    pub(super) items: Vec<Item>,
    /// Places in the plan's rules.
    pub(super) rules: Vec<usize>,
    pub(super) failed: Option<Box<Failed>>,
    after: After,
}

/// A chain of a request on its way.
pub(super) struct Item {
    pub(super) asked: Asked,
    pub(super) plan: ChainPlan,
    pub(super) build: Option<ChainBuild>,
    /// What the chain was when this was planned, and which selector it came from.
    pub(super) before: Option<(Option<InterfaceSelector>, Wanted)>,
    pub(super) prepared: Option<Prepared>,
    /// Why it cannot be changed: it is attached, and out of reach.
    pub(super) hidden: Option<KernelError>,
}

/// Why a group is as it was.
pub(super) struct Failed {
    /// The chain that is to blame, where it is one.
    pub(super) key: Option<ChainKey>,
    pub(super) error: LoaderError,
}

impl From<LoaderError> for Box<Failed> {
    fn from(error: LoaderError) -> Self {
        Self::new(Failed { key: None, error })
    }
}

impl Plan {
    /// Whether nothing can be done of what was asked for.
    fn failed(&self) -> bool {
        !self.groups.is_empty() && self.groups.iter().all(|group| group.failed.is_some())
    }

    /// Whether a rule is as it was, because every interface that needs it is.
    fn rule_failed(&self, rule: usize) -> bool {
        let mut needing = self.groups.iter().filter(|group| group.rules.contains(&rule)).peekable();
        needing.peek().is_some() && needing.all(|group| group.failed.is_some())
    }

    /// Why nothing was done.
    fn into_error(self) -> LoaderError {
        let failed = self.groups.into_iter().filter_map(|group| {
            let name = group.items.first().map(|item| item.asked.key.clone());
            group.failed.map(|failed| (name, failed.error))
        });
        let mut failed: Vec<_> = failed.collect();
        if failed.len() == 1
            && let Some((_, only)) = failed.pop()
        {
            return only;
        }
        LoaderError::Nothing(failed)
    }
}

impl<K: Kernel> Engine<K> {
    /// Plans, prepares, switches, tells.
    pub(super) fn change(&self, proposal: &Proposal) -> Result<ApplyReply, LoaderError> {
        let options = proposal.options();
        let mut plan = self.plan(proposal)?;
        self.stage(Stage::Planned);
        let mut done = self.prepare_groups(&mut plan.groups, options.until);
        if done.is_ok() && !plan.failed() {
            self.stage(Stage::Prepared);
            if !options.dry_run {
                done = self.switch(&mut plan, options);
            }
        }
        let mut inner = self.lock();
        for build in plan.groups.iter().flat_map(|group| &group.items).filter_map(Item::build) {
            inner.preparing.remove(&(build.key.clone(), build.generation));
        }
        // What was prepared and not attached goes; of what is done there is nothing left.
        for group in &plan.groups {
            if options.dry_run || done.is_err() || group.failed.is_some() {
                self.sweep_builds(&inner, &group.items);
            }
        }
        done?;
        if plan.failed() {
            return Err(plan.into_error());
        }
        if !options.dry_run {
            self.try_later(&mut inner, &plan.groups);
            self.parts.packages.retain(&digests(&inner));
        }
        Ok(self.reply(&inner, plan, options))
    }

    pub(super) fn look_at<'a>(
        &self,
        keys: impl Iterator<Item = &'a ChainKey>,
    ) -> Result<Vec<Observed>, LoaderError> {
        self.parts.kernel.observe_chains(&keys.cloned().collect()).map_err(LoaderError::kernel)
    }

    /// What is to be done, item by item. What is wrong with the request as a whole is an error.
    fn plan(&self, proposal: &Proposal) -> Result<Plan, LoaderError> {
        let options = proposal.options();
        let mut inner = self.lock();
        self.settle_journal(&mut inner);
        self.admit(&inner, options)?;
        // What is done is what was proposed, and of nothing else was anybody asked.
        let Survey { expanded, absent, displaced, .. } = self.survey_again(&inner, proposal)?;
        self.check_series(&inner, &expanded.asked)?;
        let selectors = expanded
            .selectors
            .into_iter()
            .map(|(target, interfaces)| SelectorOutcome {
                action: rule_action(&inner, &expanded.rules, &target),
                netns: target.netns,
                interface: target.interface,
                hook: target.hook,
                interfaces,
            })
            .collect();
        let mut seen = self.look_at(expanded.asked.iter().map(|asked| &asked.key))?;
        let keys = expanded.asked.iter().map(|asked| &asked.key);
        let mut hidden = self.recover(&inner, keys, &mut seen);
        let plans = plan(&inner.state, &seen, &expanded.asked);
        let places = group(&inner.state, &expanded.asked, &expanded.rules, options.atomic);
        let mut items = Vec::new();
        for (mut asked, mut plan) in expanded.asked.into_iter().zip(plans) {
            self.find_lost_settings(&inner, &mut asked, &mut plan);
            let build = match (&plan.step, &asked.wanted) {
                (Step::Build, Some(wanted)) => {
                    Some(self.lay_out(&mut inner, &seen, &asked.key, wanted)?)
                }
                (
                    Step::Build | Step::Nothing | Step::Attach(_) | Step::Note(_) | Step::Remove,
                    _,
                ) => None,
            };
            let hidden = hidden.remove(&asked.key);
            let before = described_as(&inner, &asked.key);
            items.push(Some(Item { asked, plan, build, before, prepared: None, hidden }));
        }
        let builds = items.iter().flatten().filter_map(Item::build);
        inner.preparing.extend(builds.map(|build| (build.key.clone(), build.generation)));
        let mut groups: Vec<_> = places
            .into_iter()
            .map(|places| Group {
                items: places.chains.iter().filter_map(|at| items.get_mut(*at)?.take()).collect(),
                rules: places.rules,
                failed: None,
                after: After::new(),
            })
            .collect();
        groups.extend(absent.into_iter().map(|(wishes, error)| Group {
            items: wishes.into_iter().filter_map(Item::of_absent).collect(),
            rules: Vec::new(),
            failed: Some(error.into()),
            after: After::new(),
        }));
        Ok(Plan { groups, rules: expanded.rules, selectors, displaced })
    }

    /// Has a chain built that would stay as it is, where the kernel no longer has the settings that it
    /// was built with: somebody, or a program itself, wrote over them.
    fn find_lost_settings(&self, inner: &Inner, asked: &mut Asked, plan: &mut ChainPlan) {
        let action = match plan.step {
            Step::Nothing | Step::Note(_) => Action::Updated,
            Step::Attach(_) => plan.action,
            Step::Build | Step::Remove => return,
        };
        let (Some(wanted), Some(chain)) = (&asked.wanted, inner.state.chains.get(&asked.key))
        else {
            return;
        };
        let packages = self.packages(wanted.programs.iter().map(|p| p.digest.clone()));
        // Without its packages nothing could be built instead.
        let before = Some(&chain.wanted);
        let Ok(running) = build(&asked.key, chain.running, wanted, before, &packages) else {
            return;
        };
        match self.parts.kernel.lost_setting(&running) {
            Ok(None) => {}
            Ok(Some(what)) => {
                plan.action = action;
                plan.step = Step::Build;
                plan.lines.push(format!("put back the settings that {what} no longer has"));
                asked.notes.push(format!("put back the settings that {what} no longer had"));
            }
            Err(error) => {
                asked.notes.push(format!("the settings in effect cannot be read: {error}"));
            }
        }
    }

    /// Switches each group that can be, one after the other, each with a journal of its own. Rounds of
    /// the check wait meanwhile: they would take what is still to come for missing.
    fn switch(&self, plan: &mut Plan, options: &Options) -> Result<(), LoaderError> {
        let mut inner = self.lock();
        // From the first journal on it is carried through: a request is done or it is not.
        in_time(options.until)?;
        let seen = self.look_at(items_of(&plan.groups).map(|item| &item.asked.key))?;
        let mut rules: Vec<_> = plan.rules.iter().cloned().map(Some).collect();
        let displaced = self.displaced(&inner, items_of(&plan.groups).map(|item| &item.asked))?;
        for group in plan.groups.iter_mut().filter(|group| group.failed.is_none()) {
            // The rounds of the check went on while it was prepared.
            if group.has_moved(&inner, &displaced, &plan.displaced) {
                group.failed = Some(LoaderError::Moved.into());
                continue;
            }
            let mine = group.rules.iter().filter_map(|at| rules.get(*at)?.clone()).collect();
            match self.switch_group(&mut inner, &seen, &group.items, mine, options) {
                Ok(after) => {
                    group.after = after;
                    for at in &group.rules {
                        if let Some(rule) = rules.get_mut(*at) {
                            *rule = None;
                        }
                    }
                }
                Err(error) => group.failed = Some(error.into()),
            }
        }
        Ok(())
    }

    /// Journals, switches, reads back, commits.
    fn switch_group(
        &self,
        inner: &mut Inner,
        seen: &[Observed],
        items: &[Item],
        rules: Vec<RuleChange>,
        options: &Options,
    ) -> Result<After, LoaderError> {
        // One before it may have failed and not be taken back yet.
        self.settle_journal(inner);
        no_journal(inner)?;
        let now = self.seconds();
        let mut changes = Vec::new();
        let mut so = After::new();
        for item in items {
            let key = &item.asked.key;
            let old = inner.state.chains.get(key);
            let to = match item.plan.step {
                Step::Nothing => {
                    so.insert(key.clone(), attached(seen, key).cloned());
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
                from: from(old, seen, key),
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
            rules,
            failed: false,
        };
        let mut after = self.carry_out(inner, &journal, seen)?;
        after.append(&mut so);
        Ok(after)
    }

    /// Removes what a request prepared and nothing came of.
    pub(super) fn sweep_builds(&self, inner: &Inner, items: &[Item]) {
        for build in items.iter().filter(|item| item.prepared.is_some()).filter_map(Item::build) {
            let running = self
                .look_at(std::iter::once(&build.key))
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

    /// Chains that failed and that a selector stands for stay wanted: the check tries them again.
    fn try_later(&self, inner: &mut Inner, groups: &[Group]) {
        let wanted: Vec<_> = groups
            .iter()
            .filter_map(|group| Some((group, group.failed.as_ref()?)))
            .flat_map(|(group, failed)| group.items.iter().map(move |item| (item, failed)))
            .filter(|(item, _)| item.stays_wanted(inner))
            .collect();
        if wanted.is_empty() {
            return;
        }
        self.look_for_wanting(inner);
        for (item, failed) in wanted {
            self.trouble(inner, &item.asked.key, &failed.error);
        }
    }

    /// Tells as well who stands before what was attached.
    fn placed(&self, mut outcome: ChainOutcome) -> ChainOutcome {
        let Some(observed) = &outcome.observed else { return outcome };
        let placement = self.parts.kernel.placement(&outcome.key(), observed).ok().flatten();
        for program in placement.into_iter().flat_map(|placement| placement.before) {
            outcome.notes.push(format!(
                "{program} runs before the chain: what it drops or ends does not reach the chain"
            ));
        }
        outcome
    }

    fn reply(&self, inner: &Inner, plan: Plan, options: &Options) -> ApplyReply {
        let mut selectors = plan.selectors.clone();
        for (_, change) in plan.rules.iter().enumerate().filter(|(at, _)| plan.rule_failed(*at)) {
            let mine = |one: &&mut SelectorOutcome| change.target == one.target();
            if let Some(outcome) = selectors.iter_mut().find(mine) {
                outcome.action = Action::Failed;
            }
        }
        let mut chains = Vec::new();
        for mut group in plan.groups {
            let error = group.failed.take().map(|failed| (failed.key, failed.error.into_api()));
            for item in group.items {
                let stays = item.stays_wanted(inner);
                chains.push(match &error {
                    None => self.placed(outcome(item, &group.after)),
                    Some((key, error)) => failure(item, key.as_ref(), error, stays),
                });
            }
        }
        ApplyReply {
            host: self.parts.host.clone(),
            generation: inner.state.generation,
            dry_run: options.dry_run,
            chains,
            selectors,
            admission: None,
            omitted: Vec::new(),
        }
    }
}

fn items_of(groups: &[Group]) -> impl Iterator<Item = &Item> {
    groups.iter().flat_map(|group| &group.items)
}

/// What a chain is in the state, and which selector it comes from.
fn described_as(inner: &Inner, key: &ChainKey) -> Option<(Option<InterfaceSelector>, Wanted)> {
    inner.state.chains.get(key).map(|chain| (chain.rule.clone(), chain.wanted.clone()))
}

impl Group {
    /// Whether a chain of it is another than when this was planned, or would take an interface from a
    /// chain that it would not have taken it from.
    fn has_moved(&self, inner: &Inner, now: &[Displaced], planned: &[Displaced]) -> bool {
        self.items.iter().any(|item| {
            let key = &item.asked.key;
            let mut taken = now.iter().filter(|one| one.by == *key || one.chain == *key);
            described_as(inner, key) != item.before || taken.any(|one| !planned.contains(one))
        })
    }
}

impl Item {
    pub(super) fn build(&self) -> Option<&ChainBuild> {
        self.build.as_ref()
    }

    /// What was asked for an interface that is not there.
    fn of_absent(wish: Wish) -> Option<Self> {
        let key = wish.target.key()?;
        Some(Self {
            plan: ChainPlan {
                key: key.clone(),
                action: Action::Failed,
                step: Step::Nothing,
                desired_changes: false,
                lines: Vec::new(),
            },
            asked: Asked {
                key,
                rule: None,
                wanted: wish.wanted,
                path: wish.path,
                program_paths: wish.program_paths,
                notes: wish.notes,
            },
            build: None,
            before: None,
            prepared: None,
            hidden: None,
        })
    }

    /// Whether a rule of the host asks for just this.
    fn stays_wanted(&self, inner: &Inner) -> bool {
        let Some(selector) = &self.asked.rule else { return false };
        let target = Target::of(&self.asked.key, selector.clone());
        let rule = inner.state.rules.get(&target);
        rule.is_some_and(|rule| Some(&rule.wanted) == self.asked.wanted.as_ref())
    }
}

/// What is attached of ours.
pub(super) fn attached<'a>(seen: &'a [Observed], key: &ChainKey) -> Option<&'a ObservedChain> {
    match &find(seen, key)?.state {
        LinkState::Attached(chain) => Some(chain),
        LinkState::Replaced { .. }
        | LinkState::Detached
        | LinkState::InterfaceMissing
        | LinkState::NetnsMissing
        | LinkState::Unseen { .. } => None,
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

/// The path of a field.
pub(super) fn below(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}
