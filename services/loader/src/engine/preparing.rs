//! Preparing what a request comes to: every new generation is loaded, and nothing attached.
//!
//! Chains that share a map which has to be replaced change in one step: the groups of a request that
//! turn out to share one become one group, and chains of it that would stay as they are are built anew.

use super::{
    Engine,
    change::from,
    in_time,
    items::{Failed, Group, Item, below},
};
use crate::{core::plan::Step, error::LoaderError};
use canopy_api::{ChainKey, wire::Action};
use canopy_kernel::{Kernel, KernelError};
use std::{collections::BTreeSet, time::Instant};

impl<K: Kernel> Engine<K> {
    /// Loads every new generation, group by group.
    ///
    /// # Errors
    /// When the caller's time is over: what nobody waits for is not verified for seconds either.
    pub(super) fn prepare_groups(
        &self,
        groups: &mut Vec<Group>,
        until: Option<Instant>,
    ) -> Result<(), LoaderError> {
        let mut at = 0;
        while let Some(group) = groups.get_mut(at) {
            in_time(until)?;
            if group.failed.is_some() {
                at += 1;
                continue;
            }
            match self.prepare_group(&mut group.items) {
                Ok(()) => at += 1,
                Err(failed) => match self.join(groups, at, failed) {
                    Joined::Into(joined) => at = joined,
                    Joined::Not(failed) => {
                        if let Some(group) = groups.get_mut(at) {
                            group.failed = Some(failed);
                        }
                        at += 1;
                    }
                },
            }
        }
        Ok(())
    }

    /// Makes one group of those that share a map which has to be replaced.
    fn join(&self, groups: &mut Vec<Group>, at: usize, failed: Box<Failed>) -> Joined {
        let users = users(&failed);
        let has = |group: &Group, key: &ChainKey| {
            group.failed.is_none() && group.items.iter().any(|item| item.asked.key == *key)
        };
        let others: Vec<usize> = (0..groups.len())
            .filter(|other| *other != at)
            .filter(|other| groups.get(*other).is_some_and(|g| users.iter().any(|u| has(g, u))))
            .collect();
        let covered = |user: &ChainKey| groups.iter().any(|group| has(group, user));
        if others.is_empty() || !users.iter().all(covered) {
            return Joined::Not(failed);
        }
        // Those behind first: the places of the others stay.
        let mut joined: Vec<Group> =
            others.iter().rev().map(|other| groups.remove(*other)).collect();
        let at = at - others.iter().filter(|other| **other < at).count();
        joined.reverse();
        let Some(group) = groups.get_mut(at) else { return Joined::Not(failed) };
        for other in joined {
            group.items.extend(other.items);
            let new = other.rules.into_iter().filter(|rule| !group.rules.contains(rule));
            group.rules.extend(new.collect::<Vec<_>>());
        }
        self.unprepare(&mut group.items);
        Joined::Into(at)
    }

    /// Loads every new generation of one group.
    fn prepare_group(&self, items: &mut [Item]) -> Result<(), Box<Failed>> {
        let mut order: Vec<usize> = (0..items.len()).collect();
        // Each time one chain more goes first, or is built anew.
        let mut first = BTreeSet::new();
        loop {
            let Err((at, failed)) = self.prepare_in_order(items, &order) else { return Ok(()) };
            let users = users(&failed);
            let mine = |key: &ChainKey| items.iter().any(|item| item.asked.key == *key);
            if users.is_empty() || !users.iter().all(mine) {
                return Err(failed);
            }
            let mut changed = first.insert(at);
            for item in items.iter_mut().filter(|item| users.contains(&item.asked.key)) {
                changed |= self.build_anew(item)?;
            }
            if !changed {
                return Err(failed);
            }
            self.unprepare(items);
            // The one that has to replace the map goes before those that use it.
            order.retain(|other| *other != at);
            order.insert(0, at);
        }
    }

    fn prepare_in_order(
        &self,
        items: &mut [Item],
        order: &[usize],
    ) -> Result<(), (usize, Box<Failed>)> {
        let together: Vec<(ChainKey, Option<u64>)> = order
            .iter()
            .filter_map(|at| items.get(*at))
            .filter_map(|item| match (&item.build, item.plan.step) {
                (Some(build), _) => Some((build.key.clone(), Some(build.generation))),
                (None, Step::Remove) => Some((item.asked.key.clone(), None)),
                (None, _) => None,
            })
            .collect();
        for at in order {
            let Some(item) = items.get_mut(*at) else { continue };
            if let Some(source) = item.hidden.take() {
                return Err((*at, blame(item, source)));
            }
            let Some(build) = &mut item.build else { continue };
            build.together =
                together.iter().filter(|(key, _)| *key != build.key).cloned().collect();
            let prepared = self.parts.kernel.prepare(build);
            let prepared = prepared.map_err(|source| (*at, blame(item, source)))?;
            item.prepared = Some(prepared);
            // Read back before anything is attached.
            let Some(build) = &item.build else { continue };
            match self.parts.kernel.unmet_setting(build) {
                Ok(None) => {}
                Ok(Some(what)) => {
                    let error = LoaderError::Settings { key: build.key.clone(), what };
                    return Err((*at, Box::new(Failed { key: Some(build.key.clone()), error })));
                }
                Err(source) => return Err((*at, blame(item, source))),
            }
        }
        Ok(())
    }

    /// Has a chain that would stay as it is built anew.
    fn build_anew(&self, item: &mut Item) -> Result<bool, Box<Failed>> {
        let (None, Some(wanted)) = (&item.build, &item.asked.wanted) else { return Ok(false) };
        let key = &item.asked.key;
        let seen = self.look_at(std::iter::once(key)).map_err(Box::<Failed>::from)?;
        let mut inner = self.lock();
        if from(inner.state.chains.get(key), &seen, key).is_none() {
            return Ok(false);
        }
        let build = self.lay_out(&mut inner, &seen, key, wanted).map_err(Box::<Failed>::from)?;
        inner.preparing.insert((build.key.clone(), build.generation));
        item.plan.step = Step::Build;
        item.plan.action = Action::Updated;
        item.plan.lines.push("built anew: a map that it shares is replaced".to_owned());
        item.build = Some(build);
        Ok(true)
    }

    /// Removes what was prepared of chains.
    fn unprepare(&self, items: &mut [Item]) {
        self.sweep_builds(&self.lock(), items);
        for item in items {
            item.prepared = None;
        }
    }
}

/// What became of groups that have to change together.
enum Joined {
    /// They are one group, at this place.
    Into(usize),
    /// They cannot.
    Not(Box<Failed>),
}

/// The chains that are in the way of a change, where it is a map that they share.
fn users(failed: &Failed) -> Vec<ChainKey> {
    match &failed.error {
        LoaderError::Kernel { source, .. } => match &**source {
            KernelError::SharedMap { users, .. } => users.clone(),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// A kernel's refusal at its place in the document.
fn blame(item: &Item, source: KernelError) -> Box<Failed> {
    let path = match &source {
        KernelError::Refused { member: Some(member), .. }
        | KernelError::SharedMap { member, .. } => {
            item.asked.program_paths.get(member).cloned().unwrap_or_else(|| item.asked.path.clone())
        }
        KernelError::InterfaceNotFound { .. } => below(&item.asked.path, "interface"),
        KernelError::NetnsNotFound { .. } => below(&item.asked.path, "netns"),
        _ => item.asked.path.clone(),
    };
    let error = LoaderError::Kernel { path, source: Box::new(source) };
    Box::new(Failed { key: Some(item.asked.key.clone()), error })
}
