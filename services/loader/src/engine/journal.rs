//! From intent to commit, and back when it does not come to that.

use super::{Engine, Inner, Stage, mend::BLIND};
use crate::{
    core::state::{Change, Journal, State},
    error::LoaderError,
};
use canopy_api::{ChainKey, XdpMode, wire::ObservedChain};
use canopy_kernel::{Expect, Kernel, KernelError, LinkState, Observed};
use std::collections::BTreeMap;

/// What the kernel has after a change, by chain.
pub(super) type After = BTreeMap<ChainKey, Option<ObservedChain>>;

impl<K: Kernel> Engine<K> {
    /// Writes the intent, makes the change, reads it back, commits. On any failure every chain is
    /// as before.
    pub(super) fn carry_out(
        &self,
        inner: &mut Inner,
        journal: &Journal,
        seen: &[Observed],
    ) -> Result<After, LoaderError> {
        let mut next = inner.state.clone();
        next.journal = Some(journal.clone());
        self.parts.store.save(&next)?;
        inner.state = next;
        self.stage(Stage::Journalled);

        let made = self.make(journal, seen).and_then(|after| {
            self.stage(Stage::Switched);
            self.commit(inner, journal)?;
            Ok(after)
        });
        match made {
            Ok(after) => {
                self.remember_attached(inner, after.iter().map(|(key, now)| (key, now.as_ref())));
                self.stage(Stage::Committed);
                self.sweep_changed(inner, &after);
                self.stage(Stage::Swept);
                Ok(after)
            }
            Err(error) => {
                self.back_out(inner, journal);
                self.keep_failed(inner);
                Err(error)
            }
        }
    }

    /// Attaches and detaches what a journal says, and reads it back.
    fn make(&self, journal: &Journal, seen: &[Observed]) -> Result<After, LoaderError> {
        let mut after = After::new();
        let mut detached = false;
        for change in &journal.changes {
            let mode = change.record.as_ref().map_or(XdpMode::Best, |r| r.wanted.xdp_mode);
            let now = self
                .reach(find(seen, &change.key), &change.key, change.to, mode)
                .map_err(LoaderError::kernel)?;
            detached |= now.is_none();
            if let (Some(to), Some(now)) = (change.to, &now)
                && now.generation != to
            {
                let what = format!("generation {} is attached, not {to}", now.generation);
                return Err(LoaderError::Disagrees { key: change.key.clone(), what });
            }
            after.insert(change.key.clone(), now);
        }
        if detached {
            // A switch reads back itself; an absence is looked for here.
            let seen = self.parts.kernel.observe().map_err(LoaderError::kernel)?;
            for change in journal.changes.iter().filter(|change| change.to.is_none()) {
                if let Some(LinkState::Attached(chain)) =
                    find(&seen, &change.key).map(|seen| &seen.state)
                {
                    let what = format!("generation {} is attached still", chain.generation);
                    return Err(LoaderError::Disagrees { key: change.key.clone(), what });
                }
            }
        }
        self.restore_shared_settings(journal)?;
        Ok(after)
    }

    /// Writes back settings that shared maps lack: behind everything else that can fail.
    fn restore_shared_settings(&self, journal: &Journal) -> Result<(), LoaderError> {
        for change in &journal.changes {
            let Some(to) = change.to else { continue };
            let kernel = &self.parts.kernel;
            let unmet =
                kernel.restore_shared_settings(&change.key, to).map_err(LoaderError::kernel)?;
            if let Some(what) = unmet {
                return Err(LoaderError::Settings { key: change.key.clone(), what });
            }
        }
        Ok(())
    }

    /// Makes the state after a journal the state, counts of old generations added to the totals.
    fn commit(&self, inner: &mut Inner, journal: &Journal) -> Result<(), LoaderError> {
        let mut next = inner.state.after(journal);
        let old = journal.changes.iter().filter_map(|change| Some((&change.key, change.from?)));
        let old: Vec<_> = old
            .filter(|(key, from)| !next.needs(key, *from))
            .map(|(key, from)| (key.clone(), from))
            .collect();
        self.fold(inner, &mut next, old);
        let now = self.seconds();
        let State { chains, totals, .. } = &mut next;
        totals.attend(now, |key, program| {
            chains
                .get(key)
                .is_some_and(|chain| chain.wanted.programs.iter().any(|p| p.name == *program))
        });
        self.parts.store.save(&next)?;
        inner.state = next;
        for change in &journal.changes {
            if let Some(to) = change.to {
                self.parts.kernel.keep_restored_settings(&change.key, to);
            }
        }
        self.hand_over(inner, journal.changes.iter().map(|change| &change.key));
        for change in &journal.changes {
            inner.trouble.remove(&change.key);
        }
        Ok(())
    }

    /// Adds the counts of generations that run no longer to the totals of `next`, after the last
    /// packet has left them. Those that cannot be read now are put on its list of retired ones.
    pub(super) fn fold(&self, inner: &mut Inner, next: &mut State, old: Vec<(ChainKey, u64)>) {
        if old.is_empty() {
            return;
        }
        // A TCX update returns before the last packet has left the old program.
        let settled = self.parts.kernel.settle();
        for (key, generation) in old {
            let cells = match &settled {
                Ok(()) => self.parts.kernel.cells(&key, generation),
                Err(error) => Err(KernelError::Os {
                    operation: format!("wait for packets to leave ({error})"),
                    source: std::io::Error::from(std::io::ErrorKind::Other),
                }),
            };
            match cells {
                Ok(cells) => next.totals.fold(&key, &cells),
                Err(error) => {
                    let at = (key, generation);
                    let blind = inner.blind.entry(at.clone()).or_default();
                    *blind += 1;
                    let lost = *blind > BLIND || self.pinned(&at.0, generation) == Some(false);
                    if !lost {
                        tracing::warn!(key = %at.0, generation, %error, "counts are read later");
                        next.retired.push(at);
                        continue;
                    }
                    inner.blind.remove(&at);
                    tracing::warn!(
                        key = %at.0, generation, %error, "counts lost; what was last read is kept"
                    );
                    if let Some(last) = inner.last_cells.get(&at) {
                        next.totals.fold(&at.0, last);
                    }
                }
            }
        }
    }

    /// Whether a generation is pinned; `None` if the kernel does not say.
    fn pinned(&self, key: &ChainKey, generation: u64) -> Option<bool> {
        let seen = self.parts.kernel.observe().ok()?;
        Some(find(&seen, key).is_some_and(|seen| seen.generations.contains(&generation)))
    }

    /// Makes the attachment of one chain what it is to be; `None` is nothing attached.
    pub(super) fn reach(
        &self,
        seen: Option<&Observed>,
        key: &ChainKey,
        to: Option<u64>,
        mode: XdpMode,
    ) -> Result<Option<ObservedChain>, KernelError> {
        let kernel = &self.parts.kernel;
        let state = seen.map(|seen| &seen.state);
        let Some(generation) = to else {
            if seen.is_some() {
                kernel.detach(key)?;
            }
            return Ok(None);
        };
        let expect = match state {
            Some(LinkState::Attached(now))
                if now.generation == generation && fits(mode, &now.mode) =>
            {
                return Ok(Some(now.clone()));
            }
            Some(LinkState::Attached(now)) => Expect::Generation(now.generation),
            Some(LinkState::Replaced { .. }) => Expect::Anything,
            Some(LinkState::InterfaceMissing) => return Err(KernelError::no_interface(key)),
            // What there is to be told of it, entering it tells.
            Some(LinkState::Detached | LinkState::NetnsMissing | LinkState::Unseen { .. })
            | None => Expect::Nothing,
        };
        kernel.switch(key, generation, mode, expect).map(Some)
    }

    /// Takes back what a journal did, as far as the kernel lets us; forgets the journal if it is
    /// all taken back, else leaves it for [`Self::settle_journal`].
    fn back_out(&self, inner: &mut Inner, journal: &Journal) {
        let seen = match self.parts.kernel.observe() {
            Ok(seen) => seen,
            Err(error) => {
                tracing::error!(%error, "a change failed and cannot be taken back yet");
                return;
            }
        };
        let mut whole = true;
        for change in journal.changes.iter().rev() {
            let now = find(&seen, &change.key);
            let restored = change
                .to
                .map_or(Ok(()), |to| self.parts.kernel.undo_restored_settings(&change.key, to));
            if let Err(error) = restored {
                tracing::error!(key = %change.key, %error, "settings that were put back stay so");
            }
            if change.from == change.to || !on_new_side(change, now) {
                continue;
            }
            if let Err(error) = self.reach(now, &change.key, change.from, change.from_mode) {
                // Without its interface or its pins there is nothing to come back to: the
                // reconciliation builds the chain anew from the intent.
                let gone = error.interface_missing()
                    || change.from.is_some_and(|from| {
                        !now.is_some_and(|now| now.generations.contains(&from))
                    });
                tracing::error!(key = %change.key, %error, "a failed change cannot be taken back");
                whole &= gone;
            }
        }
        if !whole {
            return;
        }
        let mut next = inner.state.clone();
        next.journal = None;
        let made: Vec<_> = journal
            .changes
            .iter()
            .filter_map(|change| Some((change.key.clone(), change.to?)))
            .filter(|(key, to)| !next.needs(key, *to))
            .filter(|(key, to)| find(&seen, key).is_some_and(|now| now.generations.contains(to)))
            .collect();
        // They may have run for a moment.
        let mut counted = next.clone();
        self.fold(inner, &mut counted, made.clone());
        match self.parts.store.save(&counted) {
            Ok(()) => inner.state = counted,
            Err(error) => {
                // The journal on disk leads a restart to the same side. What they counted stays in
                // their pins until it can be written down.
                tracing::error!(%error, "a change was taken back; this could not be written down");
                next.retired.extend(made);
                inner.state = next;
            }
        }
        self.sweep(inner);
    }

    /// Notes of a change that could not be taken back yet that it is to be: whoever asked or looks is
    /// told so, and it must not come true later, when the kernel is asked which side it is on.
    fn keep_failed(&self, inner: &mut Inner) {
        let Some(journal) = inner.state.journal.as_mut().filter(|journal| !journal.failed) else {
            return;
        };
        journal.failed = true;
        if let Err(error) = self.parts.store.save(&inner.state) {
            tracing::error!(%error, "a change failed; this could not be written down");
        }
    }

    /// Settles a change that was begun and neither committed nor taken back, by asking the kernel
    /// which side it is on: with any chain on the new side the rest follows, else all go back. One
    /// that was to go back once, as its caller was told, goes back in any case.
    pub(super) fn settle_journal(&self, inner: &mut Inner) {
        let Some(journal) = inner.state.journal.clone() else { return };
        let seen = match self.parts.kernel.observe() {
            Ok(seen) => seen,
            Err(error) => {
                tracing::error!(%error, "an unfinished change waits for the kernel");
                return;
            }
        };
        let forward = !journal.failed
            && journal.changes.iter().any(|change| {
                change.from != change.to && on_new_side(change, find(&seen, &change.key))
            });
        if forward {
            let made = self.make(&journal, &seen).and_then(|_| self.commit(inner, &journal));
            match made {
                Ok(()) => {
                    tracing::info!(generation = journal.generation, "unfinished change completed");
                    self.sweep(inner);
                    return;
                }
                Err(error) => tracing::warn!(%error, "unfinished change cannot be completed"),
            }
        }
        self.back_out(inner, &journal);
        self.keep_failed(inner);
        if inner.state.journal.is_none() {
            tracing::info!(generation = inner.state.generation, "unfinished change taken back");
        }
    }
}

/// The chain among those observed.
pub(super) fn find<'a>(seen: &'a [Observed], key: &ChainKey) -> Option<&'a Observed> {
    seen.iter().find(|seen| seen.key == *key)
}

/// Whether the kernel is where a change leads.
fn on_new_side(change: &Change, seen: Option<&Observed>) -> bool {
    match (change.to, seen.map(|seen| &seen.state)) {
        (Some(to), Some(LinkState::Attached(chain))) => chain.generation == to,
        (Some(_), _)
        | (
            None,
            Some(LinkState::Attached(_) | LinkState::Replaced { .. } | LinkState::Unseen { .. }),
        ) => false,
        (
            None,
            Some(LinkState::Detached | LinkState::InterfaceMissing | LinkState::NetnsMissing)
            | None,
        ) => true,
    }
}

/// Whether a chain attached in one mode is what another asks for.
fn fits(wanted: XdpMode, attached: &str) -> bool {
    match wanted {
        XdpMode::Best => true,
        XdpMode::Native => attached != "generic",
        XdpMode::Generic => attached != "native",
    }
}
