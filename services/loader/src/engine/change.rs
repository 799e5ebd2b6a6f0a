//! Requests that change something, up to the chains that they come to: apply, delete.

use super::{
    Engine, Inner, Options,
    items::{attached, below},
    journal::find,
};
use crate::{
    core::{
        build::build,
        downgrade::{Downgrade, downgrades},
        expand::{self, Expanded, Interfaces},
        resolve::Wish,
        state::{Chain, Wanted},
    },
    error::LoaderError,
};
use canopy_api::{
    ChainKey, Digest, InterfaceName, InterfaceSelector, ProgramName, Target,
    wire::{ApplyReply, DeleteRequest},
};
use canopy_kernel::{ChainBuild, Kernel, Observed};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::PoisonError,
};

/// What was asked for an interface that is not there, and what that is told as.
type Absent = (Vec<Wish>, LoaderError);

impl<K: Kernel> Engine<K> {
    /// Makes chains so.
    pub fn apply(
        &self,
        mut wishes: Vec<Wish>,
        options: &Options,
    ) -> Result<ApplyReply, LoaderError> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.choose(wishes.iter_mut().filter_map(|wish| wish.wanted.as_mut()));
        self.change(wishes, options)
    }

    /// Removes a chain, or one program of it.
    pub fn delete(
        &self,
        request: &DeleteRequest,
        options: &Options,
    ) -> Result<ApplyReply, LoaderError> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let wish = self.wish_to_delete(request)?;
        self.change(vec![wish], options)
    }

    /// What a delete asks for, as a wish.
    pub(super) fn wish_to_delete(&self, request: &DeleteRequest) -> Result<Wish, LoaderError> {
        let target = Target { interface: request.interface.clone(), hook: request.hook };
        let wanted = self.without(&target, request.program.as_ref())?;
        Ok(Wish {
            target,
            wanted,
            path: String::new(),
            program_paths: BTreeMap::new(),
            notes: Vec::new(),
        })
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
        let (expanded, _) = self.expand(&inner, wishes, options)?;
        Ok(downgrades(&inner.state, &expanded.asked))
    }

    /// The chains that wishes come to, on the interfaces that are there; and what was asked for those
    /// that are not, interface by interface.
    pub(super) fn expand(
        &self,
        inner: &Inner,
        wishes: Vec<Wish>,
        options: &Options,
    ) -> Result<(Expanded, Vec<Absent>), LoaderError> {
        let selectors =
            inner.state.rules.keys().chain(wishes.iter().map(|wish| &wish.target)).cloned();
        let interfaces = self.interfaces(selectors).map_err(LoaderError::kernel)?;
        let there = |name: &InterfaceName| interfaces.all.iter().any(|one| one.name == *name);
        let mut absent: BTreeMap<InterfaceName, LoaderError> = BTreeMap::new();
        for wish in wishes.iter().filter(|wish| wish.wanted.is_some()) {
            let Some(name) = wish.target.interface.name().filter(|name| !there(name)) else {
                continue;
            };
            let error = LoaderError::NoInterface {
                name: name.clone(),
                path: below(&wish.path, "interface"),
                known: interfaces.all.iter().map(|known| known.name.to_string()).collect(),
            };
            if options.atomic {
                return Err(error);
            }
            absent.entry(name.clone()).or_insert(error);
        }
        let mut left_out = BTreeMap::<_, Vec<Wish>>::new();
        let mut here = Vec::new();
        for wish in wishes {
            match wish.target.interface.name().filter(|name| absent.contains_key(*name)) {
                Some(name) => left_out.entry(name.clone()).or_default().push(wish),
                None => here.push(wish),
            }
        }
        let author = (&options.by, self.seconds());
        let expanded = expand::expand(&inner.state, &interfaces, here, author)
            .map_err(LoaderError::Ambiguous)?;
        let absent = absent
            .into_iter()
            .filter_map(|(name, error)| Some((left_out.remove(&name)?, error)))
            .collect();
        Ok((expanded, absent))
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
    pub(super) fn admit(&self, inner: &Inner, options: &Options) -> Result<(), LoaderError> {
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
}

/// Nothing new begins while an earlier change is in between.
pub(super) fn no_journal(inner: &Inner) -> Result<(), LoaderError> {
    if inner.state.journal.is_some() { Err(LoaderError::Unsettled) } else { Ok(()) }
}

/// The digests the state names.
pub(super) fn digests(inner: &Inner) -> BTreeSet<Digest> {
    inner.state.programs().map(|program| program.digest.clone()).collect()
}

/// The generation a change starts from: what the state says runs, if it is there to come back to;
/// for a chain the state does not know, what is attached.
pub(super) fn from(old: Option<&Chain>, seen: &[Observed], key: &ChainKey) -> Option<u64> {
    match old {
        Some(old) => Some(old.running),
        None => attached(seen, key).map(|chain| chain.generation),
    }
}
