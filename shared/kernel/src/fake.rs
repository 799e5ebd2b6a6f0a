//! A kernel in memory: [`FakeKernel`] keeps the promises of the [`Kernel`] port (nothing attached by
//! `prepare`, compare-and-swap in `switch`, cells and maps by generation) without root, and can be
//! tampered with, made to fail and made to crash at any call.
//!
//! What it does **not** do: read objects, verify instructions, derive anything from BPF code. A
//! packet's verdicts are given by the test.
//!
//! ```
//! use canopy_kernel::{Kernel, fake::FakeKernel};
//!
//! let kernel = FakeKernel::default();
//! kernel.add_interface(&"eth0".parse()?);
//! assert_eq!(kernel.interfaces(None)?.len(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod contents;
mod faults;
mod member_maps;
mod network;
mod port;
mod state;
mod tampering;
#[cfg(test)]
mod test_builds;
mod traffic;

pub use faults::{Call, Crashed, Fault};

#[cfg(doc)]
use crate::Kernel;
use canopy_api::{ChainKey, wire::Fact};
use contents::{Contents, FakeMap};
use state::{Generation, Inner, no_such, observed_chain, running};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A kernel in memory. Shared by reference: what outlives a crashed loader is what is in here.
#[derive(Debug, Default)]
pub struct FakeKernel {
    inner: Mutex<Inner>,
    /// Held by whoever has run times taken.
    times: Arc<()>,
}

impl FakeKernel {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The verifier refuses this function from now on.
    pub fn refuse_function(&self, function: &str) {
        self.lock().refused.push(function.to_owned());
    }

    /// Who has run times taken at the moment.
    pub fn takes_times(&self) -> usize {
        Arc::strong_count(&self.times) - 1
    }

    /// What [`Kernel::facts`] answers.
    pub fn set_facts(&self, facts: Vec<Fact>) {
        self.lock().facts = facts;
    }

    /// What [`Kernel::release`] answers.
    pub fn set_release(&self, release: &str) {
        self.lock().release = Some(release.to_owned());
    }

    /// The generation of ours that runs on a chain.
    pub fn running(&self, key: &ChainKey) -> Option<u64> {
        running(&self.lock(), key)
    }

    /// The verifier refuses this object from now on.
    pub fn refuse_object(&self, object: &[u8]) {
        self.lock().refused_objects.push(object.to_vec());
    }

    /// The objects of the members of what is attached, in order.
    pub fn objects(&self, key: &ChainKey) -> Vec<Arc<[u8]>> {
        let inner = self.lock();
        let generation =
            running(&inner, key).and_then(|running| inner.generation(key, running).ok());
        generation.map(|generation| generation.objects.clone()).unwrap_or_default()
    }

    /// The generations pinned for a chain.
    pub fn pinned(&self, key: &ChainKey) -> Vec<u64> {
        self.lock()
            .chains
            .get(key)
            .map(|chain| chain.generations.keys().copied().collect())
            .unwrap_or_default()
    }
}
