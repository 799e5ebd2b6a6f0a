//! Chains that are attached while their pins are hidden: recognised, brought back, never attached twice.

use super::{Engine, Inner, journal::find};
use canopy_api::{ChainKey, wire::ObservedChain};
use canopy_kernel::{Kernel, KernelError, LinkState, Observed};
use std::collections::BTreeMap;

impl<K: Kernel> Engine<K> {
    /// Looks for chains of which nothing is seen and that may be attached all the same. Where one was
    /// brought back, it is among what was observed afterwards. Those that are out of reach, with why.
    pub(super) fn recover<'a>(
        &self,
        inner: &Inner,
        keys: impl IntoIterator<Item = &'a ChainKey>,
        seen: &mut Vec<Observed>,
    ) -> BTreeMap<ChainKey, KernelError> {
        let mut hidden = BTreeMap::new();
        for key in keys {
            match find(seen, key).map(|seen| &seen.state) {
                None | Some(LinkState::Detached) => {}
                Some(
                    LinkState::Attached(_)
                    | LinkState::Replaced { .. }
                    | LinkState::InterfaceMissing
                    | LinkState::NetnsMissing
                    | LinkState::Unseen { .. },
                ) => continue,
            }
            match self.parts.kernel.recover_pins(key, inner.attached.known(key)) {
                Ok(true) => self.observe_again(key, seen),
                Ok(false) => {}
                Err(error @ KernelError::PinsHidden { .. }) => {
                    hidden.insert(key.clone(), error);
                }
                // What is in the way of looking is in the way of attaching too, and told there.
                Err(error) => tracing::debug!(%key, %error, "not looked for without its pins"),
            }
        }
        hidden
    }

    fn observe_again(&self, key: &ChainKey, seen: &mut Vec<Observed>) {
        match self.parts.kernel.observe_chains(&[key.clone()].into()) {
            Ok(again) => {
                seen.retain(|one| one.key != *key);
                seen.extend(again);
            }
            Err(error) => tracing::warn!(%key, %error, "a chain that was brought back is not seen"),
        }
    }

    /// Remembers what is attached, for the day its pins are hidden.
    pub(super) fn remember_attached<'a>(
        &self,
        inner: &mut Inner,
        now: impl IntoIterator<Item = (&'a ChainKey, Option<&'a ObservedChain>)>,
    ) {
        let mut news = false;
        for (key, chain) in now {
            news |= match chain {
                Some(chain) => inner.attached.note(key, chain),
                None => inner.attached.forget(key),
            };
        }
        if news && let Err(error) = self.parts.store.keep_attached(&inner.attached) {
            tracing::warn!(%error, "what is attached is not written down");
        }
    }
}
