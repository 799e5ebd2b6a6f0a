//! The loader's own check: every second it compares what is attached with what is desired, and
//! mends it from what is pinned, else from the cache. It needs neither bus nor enforcer.

use super::{Engine, Event, Inner, Stage, Trouble, change::from, journal::find};
use crate::{
    core::{
        reconcile::{Finding, Mend, judge},
        state::{Chain, Change, Journal},
    },
    error::{LoaderError, with_causes},
};
use canopy_api::{
    ChainKey,
    wire::{ChainRestored, ObservedChain},
};
use canopy_kernel::{Expect, Kernel, KernelError, LinkState, Observed};
use canopy_runtime::clock;
use std::time::Duration;

/// Longest wait between two attempts to build a chain again.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// After so many failures in a row to read a generation's counts they are held to be lost.
pub(super) const BLIND: u32 = 3;

/// Why a reconciliation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Occasion {
    /// The loader starts: what is missing was not necessarily removed by somebody.
    Start,
    /// A second has passed.
    Tick,
}

impl<K: Kernel> Engine<K> {
    /// One round; what was restored.
    pub fn tick(&self) -> Vec<Event> {
        self.end_profile();
        self.reconcile(Occasion::Tick)
    }

    pub(super) fn reconcile(&self, occasion: Occasion) -> Vec<Event> {
        let mut inner = self.lock();
        self.settle_journal(&mut inner);
        let mut seen = match self.parts.kernel.observe() {
            Ok(seen) => seen,
            Err(error) => {
                tracing::error!(error = with_causes(&error), "the kernel cannot be observed");
                return Vec::new();
            }
        };
        let mut events = Vec::new();
        if !inner.state.drained && inner.state.journal.is_none() {
            self.choose_for_rules(&mut inner);
        }
        if !inner.state.drained
            && inner.state.journal.is_none()
            && !self.follow_selectors(&mut inner, &mut seen)
        {
            return Vec::new();
        }
        if !inner.state.drained && inner.state.journal.is_none() {
            let keys: Vec<_> = inner.state.chains.keys().cloned().collect();
            let mut hidden = self.recover(&inner, self.due(&inner, &keys), &mut seen);
            for key in keys {
                if let Some(error) = hidden.remove(&key) {
                    self.trouble(&mut inner, &key, &error);
                    continue;
                }
                events.extend(self.mend(&mut inner, &key, find(&seen, &key), occasion));
            }
        }
        let attached: Vec<_> = seen.iter().filter_map(running).collect();
        self.remember_attached(&mut inner, attached);
        self.remember_cells(&mut inner);
        if occasion == Occasion::Start || leftovers(&inner, &seen) {
            self.sweep(&mut inner);
        }
        events
    }

    /// The chains for which an attempt is due.
    fn due<'a>(&self, inner: &Inner, keys: &'a [ChainKey]) -> impl Iterator<Item = &'a ChainKey> {
        let now = (self.parts.now)();
        let waits: Vec<_> = keys
            .iter()
            .filter(|key| {
                // One that is out of reach is not touched before it is looked for again.
                let trouble = inner.trouble.get(*key).filter(|trouble| !trouble.pins_hidden);
                trouble.is_none_or(|trouble| now >= trouble.not_before)
            })
            .collect();
        waits.into_iter()
    }

    fn mend(
        &self,
        inner: &mut Inner,
        key: &ChainKey,
        seen: Option<&Observed>,
        occasion: Occasion,
    ) -> Option<Event> {
        let chain = inner.state.chains.get(key)?;
        let begun = (self.parts.now)();
        let was_missing = inner.trouble.get(key).is_some_and(|trouble| trouble.interface_missing);
        let blind = inner.blind.get(&(key.clone(), chain.running)).copied().unwrap_or(0);
        let mend = match judge(chain, seen) {
            // It runs, and its maps cannot be reached any more: the next change would lose them.
            Mend::Nothing if blind >= BLIND => Mend::Rebuild(Finding::Unpinned),
            mend => mend,
        };
        let unknown = unknown(inner, key, chain, seen);
        let (finding, result) = match mend {
            Mend::Nothing => {
                inner.trouble.remove(key);
                return None;
            }
            Mend::Wait => {
                self.trouble(inner, key, &missing(key, seen));
                return None;
            }
            // It is or may well be attached: whatever is in the way is told, and nothing else touched.
            Mend::WaitToSee => {
                // Nor are its counts lost: they are read once it is within reach again.
                let at = (key.clone(), chain.running);
                inner.blind.remove(&at);
                return None;
            }
            Mend::Attach(finding, expect) => (finding, self.attach(inner, key, expect)),
            Mend::Rebuild(finding) => {
                let waits = inner.trouble.get(key).is_some_and(|t| begun < t.not_before);
                if waits {
                    return None;
                }
                let record = chain.clone();
                (finding, self.rebuild(inner, key, seen, record))
            }
        };
        if let Err(error) = result {
            self.trouble(inner, key, error.as_ref());
            return None;
        }
        inner.trouble.remove(key);
        // Written down below, or with the next change; the sweep of this round counts it in any case.
        inner.state.retired.extend(unknown);
        if was_missing || (occasion == Occasion::Start && finding == Finding::Unpinned) {
            tracing::info!(%key, "chain attached");
            return None;
        }
        let now = (self.parts.now)();
        let repair_ms = now.duration_since(begun).map_or(0, |took| took.as_millis());
        let mut next = inner.state.clone();
        let chain = next.chains.get_mut(key)?;
        chain.restored += 1;
        let event = ChainRestored {
            host: self.parts.host.clone(),
            netns: key.netns.clone(),
            interface: key.interface.clone(),
            hook: key.hook,
            found: finding.as_str().to_owned(),
            foreign_program_id: match finding {
                Finding::Replaced(id) => Some(id),
                Finding::Detached | Finding::Unpinned => None,
            },
            generation: chain.running,
            restored: chain.restored,
            repair_ms: u64::try_from(repair_ms).unwrap_or(u64::MAX),
            time: clock::rfc3339(now),
        };
        tracing::warn!(%key, %finding, restored = chain.restored, "chain restored");
        if let Err(error) = self.parts.store.save(&next) {
            tracing::warn!(error = with_causes(&error), "the repair is not written down");
        }
        inner.state = next;
        Some(Event::Restored(event))
    }

    /// Attaches the generation that is pinned.
    fn attach(
        &self,
        inner: &Inner,
        key: &ChainKey,
        expect: Expect,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let chain = inner.state.chains.get(key).ok_or("the chain is gone")?;
        self.parts.kernel.switch(key, chain.running, chain.wanted.xdp_mode, expect)?;
        Ok(())
    }

    /// Builds a chain from the cache, as its record says, in the place of what runs.
    pub(super) fn rebuild(
        &self,
        inner: &mut Inner,
        key: &ChainKey,
        seen: Option<&Observed>,
        mut record: Chain,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let interfaces = self.parts.kernel.interfaces(key.netns.as_ref())?;
        if !interfaces.iter().any(|interface| interface.name == key.interface) {
            return Err(KernelError::no_interface(key).into());
        }
        if seen.is_none_or(|seen| matches!(seen.state, LinkState::Detached)) {
            self.parts.kernel.recover_pins(key, inner.attached.known(key))?;
        }
        let seen: Vec<_> = seen.cloned().into_iter().collect();
        // What a selector gives is chosen for all of its interfaces, before they are looked at.
        if record.rule.is_none() {
            self.choose_for(inner, key, &mut record.wanted);
        }
        let build = self.lay_out(inner, &seen, key, &record.wanted)?;
        self.stage(Stage::Planned);
        self.parts.kernel.prepare(&build)?;
        if let Some(what) = self.parts.kernel.unmet_setting(&build)? {
            self.parts.kernel.discard(key, build.generation)?;
            return Err(LoaderError::Settings { key: key.clone(), what }.into());
        }
        self.stage(Stage::Prepared);
        let from = from(inner.state.chains.get(key), &seen, key);
        record.running = build.generation;
        let journal = Journal {
            generation: inner.state.generation,
            drained: false,
            changes: vec![Change {
                key: key.clone(),
                from,
                to: Some(build.generation),
                from_mode: record.wanted.xdp_mode,
                record: Some(record),
            }],
            rules: Vec::new(),
            failed: false,
        };
        if let Err(error) = self.carry_out(inner, &journal, &seen) {
            if !inner.state.needs(key, build.generation) {
                self.parts.kernel.discard(key, build.generation)?;
            }
            return Err(error.into());
        }
        Ok(())
    }

    /// Notes why a chain is not as desired, and when a new attempt is due.
    pub(super) fn trouble(
        &self,
        inner: &mut Inner,
        key: &ChainKey,
        error: &(dyn std::error::Error + 'static),
    ) {
        let interface_missing = interface_missing(error);
        let pins_hidden = pins_hidden(error);
        let reason = with_causes(error);
        let before = inner.trouble.get(key);
        // Waiting for an interface costs nothing: it is looked for at every round.
        let delay = match before {
            _ if interface_missing || pins_hidden => Duration::ZERO,
            Some(before) => (before.delay * 2).clamp(Duration::from_secs(1), LONGEST_WAIT),
            None => Duration::from_secs(1),
        };
        if before.is_none_or(|before| before.reason != reason) {
            tracing::warn!(%key, reason, "chain is not attached; trying again");
        }
        let not_before = (self.parts.now)() + delay;
        let trouble = Trouble { reason, interface_missing, pins_hidden, not_before, delay };
        inner.trouble.insert(key.clone(), trouble);
    }

    /// Keeps the counts of what runs, for the day somebody removes the pins.
    fn remember_cells(&self, inner: &mut Inner) {
        let running: Vec<_> =
            inner.state.chains.iter().map(|(key, chain)| (key.clone(), chain.running)).collect();
        for (key, generation) in running {
            let at = (key, generation);
            match self.parts.kernel.cells(&at.0, generation) {
                Ok(cells) => {
                    inner.blind.remove(&at);
                    inner.last_cells.insert(at, cells);
                }
                // What never was counted, such as a chain that waits for its interface, is not missed.
                Err(error) if inner.last_cells.contains_key(&at) => {
                    tracing::debug!(key = %at.0, generation, %error, "counts not read");
                    *inner.blind.entry(at).or_default() += 1;
                }
                Err(_) => {}
            }
        }
    }
}

/// A generation of ours that was attached and that the state does not know, as after a torn state of
/// which the copy before is used: what it counted is of use.
fn unknown(
    inner: &Inner,
    key: &ChainKey,
    chain: &Chain,
    seen: Option<&Observed>,
) -> Option<(ChainKey, u64)> {
    let seen = seen?;
    let LinkState::Attached(now) = &seen.state else { return None };
    let known = now.generation == chain.running || inner.state.needs(key, now.generation);
    (!known && seen.generations.contains(&now.generation)).then(|| (key.clone(), now.generation))
}

/// Why a chain waits for its interface.
fn missing(key: &ChainKey, seen: Option<&Observed>) -> KernelError {
    match (seen.map(|seen| &seen.state), &key.netns) {
        (Some(LinkState::NetnsMissing), Some(netns)) => KernelError::NetnsNotFound {
            netns: netns.clone(),
            why: format!("{} leads to none", netns.path().display()),
        },
        _ => KernelError::no_interface(key),
    }
}

fn interface_missing(error: &(dyn std::error::Error + 'static)) -> bool {
    of_kernel(error).is_some_and(KernelError::interface_missing)
}

fn pins_hidden(error: &(dyn std::error::Error + 'static)) -> bool {
    of_kernel(error).is_some_and(|error| matches!(error, KernelError::PinsHidden { .. }))
}

fn of_kernel<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a KernelError> {
    match error.downcast_ref::<LoaderError>() {
        Some(LoaderError::Kernel { source, .. }) => Some(source.as_ref()),
        Some(_) => None,
        None => error.downcast_ref::<KernelError>(),
    }
}

/// What is attached for a chain that was observed.
fn running(seen: &Observed) -> Option<(&ChainKey, Option<&ObservedChain>)> {
    match &seen.state {
        LinkState::Attached(chain) => Some((&seen.key, Some(chain))),
        LinkState::Replaced { .. }
        | LinkState::Detached
        | LinkState::InterfaceMissing
        | LinkState::NetnsMissing
        | LinkState::Unseen { .. } => None,
    }
}

/// Whether there are generations that nobody needs, or counts that were not read yet.
fn leftovers(inner: &Inner, seen: &[Observed]) -> bool {
    let needed = |key: &ChainKey, generation: u64| {
        inner.state.needs(key, generation) || inner.preparing.contains(&(key.clone(), generation))
    };
    !inner.state.retired.is_empty()
        || seen.iter().any(|seen| seen.generations.iter().any(|g| !needed(&seen.key, *g)))
}
