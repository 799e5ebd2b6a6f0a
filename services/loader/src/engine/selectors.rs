//! Selectors that are no plain names, at every round: interfaces that have come get their chain, those
//! that were renamed keep it, and what a selector stands for no more is removed.

use super::{Engine, Inner, Trouble, journal::find};
use crate::{
    core::{
        expand::{self, Owners},
        state::{Chain, Change, Journal},
    },
    error::with_causes,
};
use canopy_api::{ChainKey, InterfaceName, InterfaceSelector, Target};
use canopy_kernel::{Away, Kernel, LinkState, Observed};
use std::collections::BTreeSet;

/// Chains that are built for new interfaces in one round, at most: whoever asks for something waits
/// meanwhile.
const NEW_A_ROUND: usize = 32;

impl<K: Kernel> Engine<K> {
    /// Brings the chains that come from selectors to the interfaces there are now. Returns whether
    /// `seen` is what the kernel has afterwards.
    pub(super) fn follow_selectors(&self, inner: &mut Inner, seen: &mut Vec<Observed>) -> bool {
        if inner.state.rules.is_empty() && inner.state.chains.values().all(|c| c.rule.is_none()) {
            inner.wanting.clear();
            return true;
        }
        let interfaces = match self.interfaces(inner.state.rules.keys().cloned()) {
            Ok(interfaces) => interfaces,
            Err(error) => {
                tracing::error!(error = with_causes(&error), "interfaces cannot be listed");
                return true;
            }
        };
        let by_name =
            |key: &ChainKey| inner.state.chains.get(key).is_some_and(|chain| chain.rule.is_none());
        let owners = expand::owners(&inner.state.rules, &inner.state, by_name, &interfaces);
        // What is not followed yet is neither built anew under its new name nor removed.
        let waiting = self.follow_names(inner, seen, &owners);
        self.list_wanting(inner, &owners);

        let now = (self.parts.now)();
        let ready = |key: &&ChainKey| {
            let due = |trouble: &Trouble| now >= trouble.not_before;
            !waiting.contains(*key) && inner.trouble.get(*key).is_none_or(due)
        };
        let due: Vec<_> = inner.wanting.keys().filter(ready).take(NEW_A_ROUND).cloned().collect();
        for key in &due {
            self.raise(inner, key, seen);
        }
        let left = |(key, chain): (&ChainKey, &Chain)| {
            let left = chain.rule.is_some()
                && !owners.contains_key(key)
                && !waiting.contains(key)
                && !awaited(seen, key);
            left.then(|| key.clone())
        };
        let left: Vec<_> = inner.state.chains.iter().filter_map(left).collect();
        for key in &left {
            self.leave(inner, key, seen);
        }
        let touched = !due.is_empty() || !left.is_empty() || !waiting.is_empty();
        !touched || self.look_again(seen)
    }

    fn look_again(&self, seen: &mut Vec<Observed>) -> bool {
        match self.parts.kernel.observe() {
            Ok(now) => {
                *seen = now;
                true
            }
            Err(error) => {
                tracing::error!(error = with_causes(&error), "the kernel cannot be observed");
                false
            }
        }
    }

    /// Chains whose interface was renamed, and that a selector stands for still, get its new name. What
    /// is attached is not touched. Returns both names of those that could not be followed.
    fn follow_names(
        &self,
        inner: &mut Inner,
        seen: &mut Vec<Observed>,
        owners: &Owners,
    ) -> BTreeSet<ChainKey> {
        let mut waiting = BTreeSet::new();
        let gone: Vec<_> = inner
            .state
            .chains
            .iter()
            .filter(|(key, chain)| chain.rule.is_some() && !owners.contains_key(*key))
            .filter_map(|(key, chain)| {
                let to = new_name(seen, key, chain)?;
                let new = key.on(to);
                let owner = owners.get(&new)?.clone();
                (!inner.state.chains.contains_key(&new)).then(|| (key.clone(), new, owner))
            })
            .collect();
        for (old, new, owner) in gone {
            if let Err(error) = self.follow_name(inner, seen, &old, &new, owner) {
                let error = with_causes(error.as_ref());
                tracing::warn!(key = %old, to = %new, error, "a renamed interface is not followed yet");
                waiting.extend([old, new]);
                continue;
            }
            tracing::info!(key = %old, to = %new, "the interface was renamed; its chain goes along");
            if !self.look_again(seen) {
                // What was seen before does not have the new name.
                waiting.extend([old, new]);
            }
        }
        waiting
    }

    fn follow_name(
        &self,
        inner: &mut Inner,
        seen: &[Observed],
        old: &ChainKey,
        new: &ChainKey,
        owner: InterfaceSelector,
    ) -> Result<(), Box<dyn std::error::Error>> {
        // A crash behind this is recognised by the generation that is found under the new name. Other
        // pins there are in the way until they are swept.
        let running = inner.state.chains.get(old).map(|chain| chain.running);
        if !find(seen, new).is_some_and(|seen| runs(seen, running)) {
            self.parts.kernel.rename(old, &new.interface)?;
        }
        let mut next = inner.state.clone();
        if let Some(chain) = next.chains.remove(old) {
            next.chains.insert(new.clone(), Chain { rule: Some(owner), ..chain });
        }
        next.totals.rename(old, new);
        for (key, _) in &mut next.retired {
            if key == old {
                *key = new.clone();
            }
        }
        self.parts.store.save(&next)?;
        inner.state = next;
        self.rename_watches(old, new);
        inner.trouble.remove(old);
        let counted: Vec<_> =
            inner.last_cells.keys().filter(|(key, _)| key == old).cloned().collect();
        for at in counted {
            if let Some(cells) = inner.last_cells.remove(&at) {
                inner.last_cells.insert((new.clone(), at.1), cells);
            }
        }
        Ok(())
    }

    /// The same at once, after a change of which a part failed.
    pub(super) fn look_for_wanting(&self, inner: &mut Inner) {
        let interfaces = match self.interfaces(inner.state.rules.keys().cloned()) {
            Ok(interfaces) => interfaces,
            Err(error) => {
                tracing::error!(error = with_causes(&error), "interfaces cannot be listed");
                return;
            }
        };
        let by_name =
            |key: &ChainKey| inner.state.chains.get(key).is_some_and(|chain| chain.rule.is_none());
        let owners = expand::owners(&inner.state.rules, &inner.state, by_name, &interfaces);
        self.list_wanting(inner, &owners);
    }

    /// What selectors give to interfaces and is not built.
    fn list_wanting(&self, inner: &mut Inner, owners: &Owners) {
        let now = self.seconds();
        let state = &inner.state;
        inner.wanting = owners
            .iter()
            .filter_map(|(key, owner)| {
                let target = Target::of(key, owner.clone());
                let rule = state.rules.get(&target)?;
                let old = state.chains.get(key);
                let same =
                    |old: &Chain| old.rule.as_ref() == Some(owner) && old.wanted == rule.wanted;
                if old.is_some_and(same) {
                    return None;
                }
                let programs = rule.wanted.programs.iter();
                let record = Chain {
                    wanted: rule.wanted.clone(),
                    running: old.map_or(0, |old| old.running),
                    changed: rule.changed,
                    changed_by: rule.changed_by.clone(),
                    restored: old.map_or(0, |old| old.restored),
                    since: programs.map(|program| (program.name.clone(), now)).collect(),
                    rule: Some(owner.clone()),
                };
                Some((key.clone(), record))
            })
            .collect();
        let (chains, wanting) = (&inner.state.chains, &inner.wanting);
        inner.trouble.retain(|key, _| chains.contains_key(key) || wanting.contains_key(key));
    }

    /// Builds and attaches what a selector gives to an interface.
    fn raise(&self, inner: &mut Inner, key: &ChainKey, seen: &[Observed]) {
        if inner.state.journal.is_some() {
            return;
        }
        let Some(record) = inner.wanting.get(key).cloned() else { return };
        let selector = record.rule.clone();
        match self.rebuild(inner, key, find(seen, key), record) {
            Ok(()) => {
                inner.wanting.remove(key);
                inner.trouble.remove(key);
                let selector = selector.map(|selector| selector.to_string());
                tracing::info!(%key, selector, "chain attached");
            }
            Err(error) => self.trouble(inner, key, error.as_ref()),
        }
    }

    /// Removes the chain of an interface that is gone, or that its selector stands for no more.
    fn leave(&self, inner: &mut Inner, key: &ChainKey, seen: &[Observed]) {
        if inner.state.journal.is_some() {
            return;
        }
        let Some(chain) = inner.state.chains.get(key) else { return };
        let journal = Journal {
            generation: inner.state.generation,
            drained: false,
            changes: vec![Change {
                key: key.clone(),
                from: Some(chain.running),
                to: None,
                from_mode: chain.wanted.xdp_mode,
                record: None,
            }],
            rules: Vec::new(),
            failed: false,
        };
        match self.carry_out(inner, &journal, seen) {
            Ok(_) => tracing::info!(%key, "chain removed: no selector stands for its interface"),
            Err(error) => self.trouble(inner, key, &error),
        }
    }
}

/// The name that a chain's interface has now. After a crash its pins may have it already: then what is
/// attached there is the chain's generation, whose number no other chain of the host has.
fn new_name(seen: &[Observed], key: &ChainKey, chain: &Chain) -> Option<InterfaceName> {
    if let Some(Observed { away: Some(Away::Renamed(to)), .. }) = find(seen, key) {
        return Some(to.clone());
    }
    let found = seen.iter().find(|seen| {
        (seen.key.hook, &seen.key.netns) == (key.hook, &key.netns)
            && runs(seen, Some(chain.running))
    })?;
    Some(found.key.interface.clone())
}

/// Whether a chain's link went along to another network namespace, where a chain has none: that one takes
/// it over first, so that no packet passes meanwhile.
fn awaited(seen: &[Observed], key: &ChainKey) -> bool {
    let moved = find(seen, key).is_some_and(|seen| seen.away == Some(Away::OtherNamespace));
    let waits = |other: &Observed| {
        (other.key.hook, &other.state) == (key.hook, &LinkState::Detached)
            && other.key.netns != key.netns
    };
    moved && seen.iter().any(waits)
}

/// Whether a generation is what is attached.
fn runs(seen: &Observed, generation: Option<u64>) -> bool {
    matches!(&seen.state, LinkState::Attached(now) if Some(now.generation) == generation)
}
