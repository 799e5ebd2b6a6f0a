//! Requests that change something, up to the chains that they come to: apply, delete.

use super::{
    Engine, Inner, Options, Proposal,
    items::{attached, below},
    journal::find,
};
use crate::{
    core::{
        build::build,
        expand::{self, Expanded, Interfaces, Unreached},
        resolve::Wish,
        state::{Chain, Wanted},
    },
    error::{LoaderError, with_causes},
};
use canopy_api::{
    ChainKey, Digest, InterfaceName, InterfaceSelector, Netns, ProgramName, Target,
    wire::{ApplyReply, DeleteRequest},
};
use canopy_kernel::{ChainBuild, Kernel, KernelError, Observed};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::PoisonError,
};

/// Where an interface is, and its name.
type At = (Option<Netns>, InterfaceName);

/// What was asked for an interface that is not there, and what that is told as.
pub(super) type Absent = (Vec<Wish>, LoaderError);

impl<K: Kernel> Engine<K> {
    /// Makes chains so. Policy is not asked: see [`Self::propose_apply`].
    pub fn apply(&self, wishes: Vec<Wish>, options: &Options) -> Result<ApplyReply, LoaderError> {
        let proposal = self.propose_apply(wishes, options)?;
        self.execute(&proposal)
    }

    /// Removes a chain, or one program of it. Policy is not asked: see [`Self::propose_delete`].
    pub fn delete(
        &self,
        request: &DeleteRequest,
        options: &Options,
    ) -> Result<ApplyReply, LoaderError> {
        let proposal = self.propose_delete(request, options)?;
        self.execute(&proposal)
    }

    /// Does what was proposed, if the host is still as it was when that was planned.
    ///
    /// # Errors
    /// [`LoaderError::Moved`] where it is not: then nothing was changed, and it is to be planned and asked
    /// about again. What else is in the way is told as it is.
    pub fn execute(&self, proposal: &Proposal) -> Result<ApplyReply, LoaderError> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.change(proposal)
    }

    /// What a delete asks for, as a wish.
    pub(super) fn wish_to_delete(&self, request: &DeleteRequest) -> Result<Wish, LoaderError> {
        let target = Target {
            netns: request.netns.clone(),
            interface: request.interface.clone(),
            hook: request.hook,
        };
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
        let known = match target.key() {
            None => state.rules.get(target).map(|rule| &rule.wanted),
            Some(key) => {
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

    /// The chains that wishes come to, on the interfaces that are there; and what was asked for those
    /// that are not, interface by interface.
    pub(super) fn expand(
        &self,
        inner: &Inner,
        wishes: Vec<Wish>,
        options: &Options,
        now: u64,
    ) -> Result<(Expanded, Vec<Absent>), LoaderError> {
        let selectors =
            inner.state.rules.keys().chain(wishes.iter().map(|wish| &wish.target)).cloned();
        let interfaces = self.interfaces(selectors).map_err(LoaderError::kernel)?;
        let there =
            |at: &At| interfaces.all.iter().any(|one| at.0 == one.netns && at.1 == one.name);
        let mut absent: BTreeMap<At, LoaderError> = BTreeMap::new();
        for wish in wishes.iter().filter(|wish| wish.wanted.is_some()) {
            let Some(at) = at(&wish.target).filter(|at| !there(at)) else { continue };
            let error = absence(&at, wish, &interfaces);
            if options.atomic {
                return Err(error);
            }
            absent.entry(at).or_insert(error);
        }
        let mut left_out = BTreeMap::<_, Vec<Wish>>::new();
        let mut here = Vec::new();
        for wish in wishes {
            match at(&wish.target).filter(|at| absent.contains_key(at)) {
                Some(at) => left_out.entry(at).or_default().push(wish),
                None => here.push(wish),
            }
        }
        let author = (&options.by, now);
        let expanded = expand::expand(&inner.state, &interfaces, here, author)
            .map_err(LoaderError::Ambiguous)?;
        let absent = absent
            .into_iter()
            .filter_map(|(at, error)| Some((left_out.remove(&at)?, error)))
            .collect();
        Ok((expanded, absent))
    }

    /// The interfaces of the host and of the namespaces of these selectors, with what those ask about them.
    pub(super) fn interfaces(
        &self,
        targets: impl IntoIterator<Item = Target>,
    ) -> Result<Interfaces, KernelError> {
        // Each namespace, and whether somebody asks for its default route.
        let mut namespaces = BTreeMap::from([(None, false)]);
        for Target { netns, interface, .. } in targets {
            *namespaces.entry(netns).or_default() |= interface == InterfaceSelector::DefaultRoute;
        }
        let kernel = &self.parts.kernel;
        let mut interfaces = Interfaces::default();
        for (netns, routed) in namespaces {
            let looked = kernel.interfaces(netns.as_ref()).and_then(|all| {
                let route = if routed { kernel.default_route(netns.as_ref())? } else { Vec::new() };
                Ok((all, route))
            });
            match (looked, netns) {
                (Ok((all, route)), netns) => {
                    interfaces.all.extend(all);
                    let route = route.into_iter().map(|index| (netns.clone(), index));
                    interfaces.default_route.extend(route);
                }
                (Err(error), None) => return Err(error),
                (Err(error), Some(netns)) => {
                    interfaces.unreached.insert(netns, unreached(error));
                }
            }
        }
        Ok(interfaces)
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
        let mut packages = self.packages(wanted.programs.iter().map(|p| p.digest.clone()));
        let previous = inner.state.chains.get(key).map(|chain| &chain.wanted);
        // Of the versions before only what their settings put into maps is asked: without, such maps
        // start anew.
        for program in previous.into_iter().flat_map(|previous| &previous.programs) {
            if !packages.contains_key(&program.digest)
                && let Ok(package) = self.parts.packages.package(&program.digest)
            {
                packages.insert(program.digest.clone(), package);
            }
        }
        let build = build(key, generation, wanted, previous, &packages)?;
        inner.state.last_build = generation;
        Ok(build)
    }
}

fn at(target: &Target) -> Option<At> {
    Some((target.netns.clone(), target.interface.name()?.clone()))
}

/// Why an interface is not there: its namespace, or itself.
fn absence(at: &At, wish: &Wish, interfaces: &Interfaces) -> LoaderError {
    let (netns, name) = at;
    if let Some(why) = netns.as_ref().and_then(|netns| interfaces.unreached.get(netns)) {
        return LoaderError::Netns { path: below(&wish.path, "netns"), why: why.clone() };
    }
    let known = interfaces.all.iter().filter(|known| known.netns == *netns);
    LoaderError::NoInterface {
        netns: netns.clone(),
        name: name.clone(),
        path: below(&wish.path, "interface"),
        known: known.map(|known| known.name.to_string()).collect(),
    }
}

/// Why a namespace could not be looked into.
fn unreached(error: KernelError) -> Unreached {
    let missing = error.interface_missing();
    let what = with_causes(&error);
    let remedy = match error {
        KernelError::Unsupported { remedy, .. } => remedy,
        _ if missing => "create the namespace, or correct what names it".to_owned(),
        _ => "see the loader's log".to_owned(),
    };
    Unreached { missing, what, remedy }
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
