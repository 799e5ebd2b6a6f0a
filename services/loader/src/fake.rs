//! For tests of the loader: packages in memory, and an engine with nothing else around it.

use crate::{
    cache::PackageSource,
    engine::{Engine, Parts},
    store::{Store, StoreError},
};
use canopy_api::{Digest, HostId};
use canopy_kernel::Kernel;
use canopy_package::Package;
use canopy_runtime::clock;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

/// Packages in memory. Nothing is ever cleared away.
#[derive(Debug, Default)]
pub struct Shelf(Mutex<BTreeMap<Digest, Arc<Package>>>);

impl Shelf {
    /// Puts one there.
    pub fn put(&self, digest: Digest, package: Arc<Package>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, package);
    }

    /// Takes one off, as somebody would who clears away too much.
    pub fn take(&self, digest: &Digest) -> Option<Arc<Package>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(digest)
    }
}

impl PackageSource for Shelf {
    fn package(&self, digest: &Digest) -> Result<Arc<Package>, String> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(digest).cloned().ok_or_else(|| "not on the shelf".to_owned())
    }

    fn retain(&self, _: &BTreeSet<Digest>) {}
}

/// Starts an engine by the clock of the machine, with its state in a directory.
pub fn engine<K: Kernel>(
    host: HostId,
    kernel: Arc<K>,
    state: &Path,
    packages: Arc<dyn PackageSource>,
) -> Result<Engine<K>, StoreError> {
    Engine::start(Parts {
        host,
        version: "0".to_owned(),
        kernel,
        store: Store::open(state)?,
        packages,
        now: clock::now,
        on_stage: |_| {},
    })
}
