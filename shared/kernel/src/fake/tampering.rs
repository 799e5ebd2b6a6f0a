//! What others do to chains, pins and the host behind the loader's back.

use super::{FakeKernel, state::Runs};
use canopy_api::{ChainKey, wire::ForeignProgram};
use std::path::PathBuf;

impl FakeKernel {
    /// Somebody detaches the chain's link.
    pub fn tamper_detach(&self, key: &ChainKey) {
        if let Some(chain) = self.lock().chains.get_mut(key) {
            chain.link = None;
        }
    }

    /// Somebody puts a program of theirs into the chain's link; returns its id.
    pub fn tamper_replace(&self, key: &ChainKey) -> u32 {
        let mut inner = self.lock();
        let id = inner.id();
        if let Some(link) = inner.chains.get_mut(key).and_then(|chain| chain.link.as_mut()) {
            link.runs = Runs::Foreign(id);
        }
        id
    }

    /// Somebody removes every pin of the chain's generations; what is attached stays attached.
    pub fn tamper_unpin(&self, key: &ChainKey) {
        if let Some(chain) = self.lock().chains.get_mut(key) {
            chain.generations.clear();
        }
    }

    /// Somebody mounts a file system over the pins of a chain; what is attached stays attached.
    pub fn tamper_hide(&self, key: &ChainKey) {
        let mut inner = self.lock();
        if let Some(chain) = inner.chains.remove(key) {
            inner.hidden.insert(key.clone(), chain);
        }
    }

    /// Somebody unmounts it again.
    pub fn uncover(&self, key: &ChainKey) {
        let mut inner = self.lock();
        if let Some(chain) = inner.hidden.remove(key) {
            inner.chains.insert(key.clone(), chain);
        }
    }

    /// Whether the loader may ask for programs by their ids from now on.
    pub fn allow_ids(&self, allowed: bool) {
        self.lock().may_ask_by_id = allowed;
    }

    /// Programs of others come before a chain, instead of those that were there.
    pub fn put_before(&self, key: &ChainKey, programs: Vec<ForeignProgram>) {
        self.lock().before.insert(key.clone(), programs);
    }

    /// What a chain's device has dropped of what the chain sent.
    pub fn set_device_error(&self, key: &ChainKey, counter: &str, count: u64) {
        let mut inner = self.lock();
        inner.device_errors.entry(key.clone()).or_default().insert(counter.to_owned(), count);
    }

    /// Something that is nothing of ours lies among the pins.
    pub fn add_stray(&self, path: impl Into<PathBuf>) {
        self.lock().strays.push(path.into());
    }

    /// The host restarts: interfaces come back, everything else is gone.
    pub fn reboot(&self) {
        let mut inner = self.lock();
        inner.boots += 1;
        inner.hidden.clear();
        inner.chains.clear();
        inner.in_flight.clear();
    }

    /// Somebody takes the settings out of every map as soon as it is made, from now on.
    pub fn forget_settings(&self) {
        self.lock().forgetful = true;
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_builds::{build, key};
    use super::*;
    use crate::{Expect, Kernel as _};
    use canopy_api::XdpMode;

    #[test]
    fn what_is_hidden_is_attached_again_when_uncovered() {
        let kernel = FakeKernel::default();
        kernel.add_interface(&key().interface);
        kernel.prepare(&build(1, &["a"])).unwrap();
        kernel.switch(&key(), 1, XdpMode::Best, Expect::Nothing).unwrap();
        kernel.tamper_hide(&key());
        assert_eq!((kernel.running(&key()), kernel.pinned(&key())), (None, vec![]));
        kernel.uncover(&key());
        assert_eq!((kernel.running(&key()), kernel.pinned(&key())), (Some(1), vec![1]));
        kernel.tamper_replace(&key());
        assert_eq!(kernel.running(&key()), None);
    }
}
