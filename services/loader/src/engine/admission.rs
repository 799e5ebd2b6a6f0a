//! A change before it is made: what policy is asked about, and what that was planned from.
//!
//! The order is *survey*, *ask*, *execute*: the execution surveys again, under the lock that changes are
//! made under, and does nothing if it does not come to the same.

use super::{Engine, Inner, Options, change::Absent, maps::place};
use crate::{
    core::{
        admission::{self, Changes, Displaced},
        build::shared_maps,
        downgrade::Downgrade,
        expand::Expanded,
        handover::Aliases,
        plan::Asked,
        resolve::Wish,
        state::WantedProgram,
    },
    error::{LoaderError, with_causes},
};
use canopy_api::{
    ChainKey, Digest, Netns, Target,
    wire::{AdmissionItem, AdmissionVerb, DeleteRequest, MapName},
};
use canopy_kernel::{Away, Kernel, ShareScope, SharedMap};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

/// Packages whose shared maps are remembered.
const REMEMBERED: usize = 256;

/// The maps that packages share, by their bytes.
#[derive(Default)]
pub(super) struct SharedMaps(Mutex<BTreeMap<Digest, Vec<SharedMap>>>);

/// A change that is planned and not made.
#[derive(Debug)]
pub struct Proposal {
    wishes: Vec<Wish>,
    /// Whether it is an apply.
    puts: bool,
    options: Options,
    /// When it was planned, seconds since the epoch.
    at: u64,
    survey: Survey,
}

/// What a request comes to on this host as it is now.
#[derive(Debug)]
pub(super) struct Survey {
    generation: u64,
    pub(super) expanded: Expanded,
    pub(super) absent: Vec<Absent>,
    pub(super) displaced: Vec<Displaced>,
    items: Vec<AdmissionItem>,
    downgrades: Vec<Downgrade>,
}

impl Survey {
    /// Whether the same would be done, and the same asked.
    fn says_what(&self, other: &Self) -> bool {
        let absent = |survey: &Self| -> Vec<Target> {
            survey.absent.iter().flat_map(|(wishes, _)| wishes).map(|w| w.target.clone()).collect()
        };
        (self.generation, &self.items, &self.downgrades)
            == (other.generation, &other.items, &other.downgrades)
            && self.expanded == other.expanded
            && self.displaced == other.displaced
            && absent(self) == absent(other)
    }
}

impl Proposal {
    /// What policy is asked about.
    pub fn parts(&self) -> &[AdmissionItem] {
        &self.survey.items
    }

    /// The programs that would go back to an older version.
    pub fn downgrades(&self) -> &[Downgrade] {
        &self.survey.downgrades
    }

    pub(super) fn options(&self) -> &Options {
        &self.options
    }
}

impl<K: Kernel> Engine<K> {
    /// Plans an apply.
    pub fn propose_apply(
        &self,
        mut wishes: Vec<Wish>,
        options: &Options,
    ) -> Result<Proposal, LoaderError> {
        self.choose(wishes.iter_mut().filter_map(|wish| wish.wanted.as_mut()));
        self.propose(wishes, true, options)
    }

    /// Plans a delete.
    pub fn propose_delete(
        &self,
        request: &DeleteRequest,
        options: &Options,
    ) -> Result<Proposal, LoaderError> {
        self.propose(vec![self.wish_to_delete(request)?], false, options)
    }

    fn propose(
        &self,
        wishes: Vec<Wish>,
        puts: bool,
        options: &Options,
    ) -> Result<Proposal, LoaderError> {
        let at = self.seconds();
        let mut inner = self.lock();
        self.settle_journal(&mut inner);
        self.admit(&inner, options)?;
        let survey = self.survey(&inner, (&wishes, puts), options, at)?;
        Ok(Proposal { wishes, puts, options: options.clone(), at, survey })
    }

    /// What a proposal comes to now.
    ///
    /// # Errors
    /// [`LoaderError::Moved`] where that is something else than it was proposed for.
    pub(super) fn survey_again(
        &self,
        inner: &Inner,
        proposal: &Proposal,
    ) -> Result<Survey, LoaderError> {
        let Proposal { wishes, puts, options, at, survey } = proposal;
        let now = self.survey(inner, (wishes, *puts), options, *at)?;
        if now.says_what(survey) { Ok(now) } else { Err(LoaderError::Moved) }
    }

    fn survey(
        &self,
        inner: &Inner,
        (wishes, puts): (&[Wish], bool),
        options: &Options,
        at: u64,
    ) -> Result<Survey, LoaderError> {
        let (expanded, absent) = self.expand(inner, wishes.to_vec(), options, at)?;
        let displaced = self.displaced(inner, expanded.asked.iter())?;
        let aliases = self.aliases(inner, wishes);
        let changes = Changes {
            state: &inner.state,
            wishes,
            puts,
            asked: &expanded.asked,
            displaced: &displaced,
            aliases: &aliases,
            shared_of: &|program| self.shared_of(program),
        };
        let (items, downgrades) = changes.parts();
        let generation = inner.state.generation;
        Ok(Survey { generation, expanded, absent, displaced, items, downgrades })
    }

    /// The chains whose link hangs on an interface of another name, and would be taken off it: because one
    /// of these would have that interface, or because it is one of these itself.
    pub(super) fn displaced<'a>(
        &self,
        inner: &Inner,
        asked: impl Iterator<Item = &'a Asked>,
    ) -> Result<Vec<Displaced>, LoaderError> {
        let asked: Vec<_> = asked.collect();
        let hooks: BTreeSet<_> = asked.iter().map(|asked| asked.key.hook).collect();
        let known = inner.state.chains.keys().filter(|key| hooks.contains(&key.hook));
        let seen = self.look_at(known)?;
        let takes = |asked: &Asked, chain: &ChainKey, away: &Away| {
            let by = &asked.key;
            asked.wanted.is_some()
                && by != chain
                && by.hook == chain.hook
                && match away {
                    Away::Renamed(to) => (&by.netns, &by.interface) == (&chain.netns, to),
                    Away::OtherNamespace => by.netns != chain.netns,
                }
        };
        let mut displaced = Vec::new();
        for one in &seen {
            let (chain, Some(away)) = (&one.key, &one.away) else { continue };
            for asked in asked.iter().filter(|asked| takes(asked, chain, away)) {
                displaced.push(Displaced { chain: chain.clone(), by: asked.key.clone() });
            }
            if let Away::Renamed(to) = away
                && asked.iter().any(|asked| asked.key == *chain)
            {
                displaced.push(Displaced { chain: chain.clone(), by: chain.on(to.clone()) });
            }
        }
        Ok(displaced)
    }

    /// Which of the namespaces that a request and the state name are one.
    fn aliases(&self, inner: &Inner, wishes: &[Wish]) -> Aliases {
        let asked: BTreeSet<Option<Netns>> =
            wishes.iter().map(|wish| wish.target.netns.clone()).collect();
        let chains = inner.state.chains.keys().map(|key| key.netns.clone());
        let known: BTreeSet<Option<Netns>> =
            chains.chain(inner.state.rules.keys().map(|target| target.netns.clone())).collect();
        let mut same = BTreeSet::new();
        for one in &asked {
            for other in known.iter().filter(|other| *other != one) {
                if self.parts.kernel.same_netns(one.as_ref(), other.as_ref()) {
                    same.insert((one.clone(), other.clone()));
                }
            }
        }
        Aliases(same)
    }

    /// The maps that a program shares by name: those of its package, whichever of its objects it runs. A
    /// program whose package is not at hand cannot be built, and shares nothing.
    fn shared_of(&self, program: &WantedProgram) -> Vec<SharedMap> {
        let known = || self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = known().get(&program.digest) {
            return shared.clone();
        }
        let Ok(package) = self.parts.packages.package(&program.digest) else { return Vec::new() };
        let mut shared = shared_maps(&package.manifest);
        for object in package.objects.values() {
            for map in self.parts.kernel.pinned_by_name(object) {
                if !shared.iter().any(|known| known.map == map) {
                    shared.push(SharedMap { map, scope: ShareScope::Interface });
                }
            }
        }
        let mut known = known();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(program.digest.clone(), shared.clone());
        shared
    }

    /// The parts of taking run times: the kernel takes those of every program.
    pub fn parts_of_profile(&self) -> Vec<AdmissionItem> {
        admission::of_host(&self.lock().state, AdmissionVerb::Profile)
    }

    /// The parts of what is done to a map: every program that has it, or would on an interface to come.
    pub fn parts_of_map(
        &self,
        verb: AdmissionVerb,
        name: &MapName,
    ) -> Result<Vec<AdmissionItem>, LoaderError> {
        self.parts_of_map_in(&self.lock(), verb, name)
    }

    pub(super) fn parts_of_map_in(
        &self,
        inner: &Inner,
        verb: AdmissionVerb,
        name: &MapName,
    ) -> Result<Vec<AdmissionItem>, LoaderError> {
        let own = place(inner, name)?;
        let target = Target::from(own.key.clone());
        let mut items = vec![admission::of_map(verb, &target, &own.program, &name.map)];
        let mut add = |item: AdmissionItem| {
            if !items.contains(&item) {
                items.push(item);
            }
        };
        let maps = |key: &ChainKey, generation| {
            self.parts.kernel.maps(key, generation).map_err(LoaderError::kernel)
        };
        // Those that have it, as the kernel says.
        let mine = maps(&own.key, own.generation)?;
        let mine =
            mine.into_iter().find(|map| (&map.member, &map.name) == (&name.program, &name.map));
        let mine = mine.map(|map| map.id);
        for (key, chain) in &inner.state.chains {
            let known = match maps(key, chain.running) {
                Ok(known) => known,
                // What has no pins has no map yet; below it counts as one that will have it.
                Err(error) => {
                    tracing::debug!(%key, error = with_causes(&error), "its maps are not seen");
                    continue;
                }
            };
            for map in known.iter().filter(|map| Some(map.id) == mine) {
                let programs = &chain.wanted.programs;
                if let Some(program) = programs.iter().find(|program| program.name == map.member) {
                    add(admission::of_map(verb, &key.clone().into(), program, &map.name));
                }
            }
        }
        // Those that come to have it where their interface comes.
        let all = inner.state.chains.iter();
        let all = all.map(|(key, chain)| (Target::from(key.clone()), &chain.wanted));
        let rules = inner.state.rules.iter().map(|(target, rule)| (target.clone(), &rule.wanted));
        let shared = self.shared_of(&own.program);
        let aliases = Aliases::default();
        for shared in shared.iter().filter(|shared| shared.map == name.map) {
            for (other, wanted) in all.clone().chain(rules.clone()) {
                if shared.scope == ShareScope::Interface && !aliases.may_meet(&other, &target) {
                    continue;
                }
                let programs = wanted.programs.iter();
                for program in programs.filter(|one| self.shared_of(one).contains(shared)) {
                    add(admission::of_map(verb, &other, program, &name.map));
                }
            }
        }
        Ok(items)
    }
}

/// Whether policy was asked about just these parts.
///
/// # Errors
/// [`LoaderError::Moved`] where it was asked about others. `None` are those of whoever asks nobody.
pub(super) fn as_asked(
    asked: Option<&[AdmissionItem]>,
    now: impl FnOnce() -> Result<Vec<AdmissionItem>, LoaderError>,
) -> Result<(), LoaderError> {
    match asked {
        Some(asked) if now()? != asked => Err(LoaderError::Moved),
        Some(_) | None => Ok(()),
    }
}
