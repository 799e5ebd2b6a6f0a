//! What is removed once nobody needs it: old generations, after what they counted is written down.

use super::{Engine, Inner, journal::After};
use canopy_api::ChainKey;
use canopy_kernel::{Kernel, LinkState};

impl<K: Kernel> Engine<K> {
    /// Removes generations that nobody needs, and counts retired ones.
    pub(super) fn sweep(&self, inner: &mut Inner) {
        if inner.lost.is_some() {
            return;
        }
        self.count_retired(inner);
        let seen = match self.parts.kernel.observe() {
            Ok(seen) => seen,
            Err(error) => {
                tracing::warn!(%error, "old generations stay for later");
                return;
            }
        };
        let mut swept = Swept::default();
        // What cannot be seen may be attached.
        let seen = seen.into_iter().filter(|seen| !matches!(seen.state, LinkState::Unseen { .. }));
        for seen in seen {
            let attached = match &seen.state {
                LinkState::Attached(chain) => Some(chain.generation),
                LinkState::Replaced { .. }
                | LinkState::Detached
                | LinkState::InterfaceMissing
                | LinkState::NetnsMissing
                | LinkState::Unseen { .. } => None,
            };
            self.sweep_chain(inner, &seen.key, attached, seen.generations, &mut swept);
        }
    }

    /// The same of the chains that a change was made to, of which is known what is attached.
    pub(super) fn sweep_changed(&self, inner: &mut Inner, after: &After) {
        if inner.lost.is_some() {
            return;
        }
        self.count_retired(inner);
        let mut swept = Swept::default();
        for (key, now) in after {
            let attached = now.as_ref().map(|chain| chain.generation);
            match self.parts.kernel.generations(key) {
                Ok(there) => self.sweep_chain(inner, key, attached, there, &mut swept),
                Err(error) => tracing::warn!(%key, %error, "old generations stay for later"),
            }
        }
    }

    /// Removes those generations of a chain that nobody needs.
    fn sweep_chain(
        &self,
        inner: &mut Inner,
        key: &ChainKey,
        attached: Option<u64>,
        generations: Vec<u64>,
        swept: &mut Swept,
    ) {
        for generation in generations {
            let at = (key.clone(), generation);
            let needed = attached == Some(generation)
                || inner.state.needs(key, generation)
                || inner.preparing.contains(&at);
            if needed {
                continue;
            }
            // The state before does not have what this generation counted, and could read it
            // from nowhere then.
            if !std::mem::replace(&mut swept.copied, true)
                && let Err(error) = self.parts.store.keep_copy(&inner.state)
            {
                tracing::warn!(%error, "the copy of the state is an older one");
            }
            if let Err(error) = self.parts.kernel.discard(key, generation) {
                tracing::warn!(%key, generation, %error, "pins stay for later");
            }
            inner.last_cells.remove(&at);
            inner.blind.remove(&at);
        }
    }

    /// Counts what retired generations counted, those that can be read now.
    fn count_retired(&self, inner: &mut Inner) {
        if !inner.state.retired.is_empty() {
            let mut next = inner.state.clone();
            let retired = std::mem::take(&mut next.retired);
            self.fold(inner, &mut next, retired);
            if next.retired != inner.state.retired {
                match self.parts.store.save(&next) {
                    Ok(()) => inner.state = next,
                    Err(error) => tracing::warn!(%error, "retired counts stay for later"),
                }
            }
        }
    }
}

/// What a sweep has done already.
#[derive(Default)]
struct Swept {
    /// The copy of the state is this one.
    copied: bool,
}
