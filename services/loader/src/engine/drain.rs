//! Everything off, with the intent kept, and everything back.

use super::{
    Engine, admission::as_asked, change::no_journal, in_time, items::attached, journal::find,
    tell::planned,
};
use crate::{
    core::{
        admission::of_host,
        state::{Change, Journal},
    },
    error::LoaderError,
};
use canopy_api::wire::{Action, AdmissionItem, AdmissionVerb, ApplyReply, ChainOutcome};
use canopy_kernel::{Kernel, LinkState};
use std::{sync::PoisonError, time::Instant};

impl<K: Kernel> Engine<K> {
    /// Detaches everything and keeps the intent, or brings it back. Policy is not asked: see
    /// [`Self::drain_as_asked`].
    pub fn drain(&self, undo: bool, dry_run: bool) -> Result<ApplyReply, LoaderError> {
        self.drain_of(undo, dry_run, None, None)
    }

    /// The same, if it is in the journal by then and policy was asked about just this.
    pub fn drain_as_asked(
        &self,
        undo: bool,
        dry_run: bool,
        until: Option<Instant>,
        asked: &[AdmissionItem],
    ) -> Result<ApplyReply, LoaderError> {
        self.drain_of(undo, dry_run, until, Some(asked))
    }

    /// The parts of a drain, or of undoing one.
    pub fn parts_of_drain(&self, undo: bool) -> Vec<AdmissionItem> {
        of_host(&self.lock().state, verb(undo))
    }

    fn drain_of(
        &self,
        undo: bool,
        dry_run: bool,
        until: Option<Instant>,
        asked: Option<&[AdmissionItem]>,
    ) -> Result<ApplyReply, LoaderError> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut inner = self.lock();
        self.settle_journal(&mut inner);
        no_journal(&inner)?;
        as_asked(asked, || Ok(of_host(&inner.state, verb(undo))))?;
        let mut seen = self.parts.kernel.observe().map_err(LoaderError::kernel)?;
        let keys: Vec<_> = inner.state.chains.keys().cloned().collect();
        let hidden = self.recover(&inner, &keys, &mut seen);
        // What is out of reach cannot be taken off, and must not be told to be.
        if let (false, Some((_, error))) = (undo, hidden.into_iter().next()) {
            return Err(LoaderError::kernel(error));
        }
        let drained = !undo;
        let unchanged = inner.state.drained == drained;
        let mut changes = Vec::new();
        let mut outcomes = Vec::new();
        let mut absent = Vec::new();
        for (key, chain) in &inner.state.chains {
            let now = find(&seen, key);
            let attachable = now.is_some_and(|now| {
                now.generations.contains(&chain.running)
                    && !matches!(
                        now.state,
                        LinkState::InterfaceMissing
                            | LinkState::NetnsMissing
                            | LinkState::Unseen { .. }
                    )
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
                netns: key.netns.clone(),
                interface: key.interface.clone(),
                hook: key.hook,
                action,
                error: None,
                steps: line.into_iter().collect(),
                notes: Vec::new(),
                programs: if drained { Vec::new() } else { planned(&chain.wanted, key.hook) },
                observed: None,
            });
        }
        if !dry_run && !unchanged {
            in_time(until)?;
            let journal = Journal {
                generation: inner.state.generation,
                drained,
                changes,
                rules: Vec::new(),
                failed: false,
            };
            let after = self.carry_out(&mut inner, &journal, &seen)?;
            for outcome in &mut outcomes {
                let key = outcome.key();
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
            admission: None,
            omitted: Vec::new(),
        })
    }
}

fn verb(undo: bool) -> AdmissionVerb {
    if undo { AdmissionVerb::Undrain } else { AdmissionVerb::Drain }
}
