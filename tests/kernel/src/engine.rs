//! The loader's engine over the real kernel, on a veth pair. No bus here.

use crate::package::{manifest, object};
use canopy_api::{
    DesiredState, Digest, Hook,
    wire::{ApplyReply, ChainStatus, GetRequest},
};
use canopy_kernel_aya::AyaKernel;
use canopy_loader::{
    core::resolve::{self, Located},
    engine::{Engine, Options},
    error::LoaderError,
    fake::{self, Shelf},
};
use canopy_package::Package;
use canopy_test_support::{bpffs::BpffsDir, pair::Pair, traffic::ping};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, sync::Arc};

/// A host: a veth pair, pins, a state directory, the packages of the source tree.
pub struct Host {
    /// The interfaces.
    pub pair: Pair,
    /// Where the loader pins.
    pub bpffs: BpffsDir,
    /// Where the loader keeps its state.
    pub dir: tempfile::TempDir,
    /// The packages it has.
    pub shelf: Arc<Shelf>,
    /// The same, by what documents call them.
    pub located: BTreeMap<String, Located>,
}

/// The loader without its bus.
pub type Loader = Engine<AyaKernel>;

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    /// A new one, with every package of the source tree.
    pub fn new() -> Self {
        let shelf = Shelf::default();
        let mut located = BTreeMap::new();
        for name in ["firewall", "ratelimit", "flowmeter"] {
            let manifest = manifest(name).unwrap();
            let file = manifest.programs[0].object.clone();
            let object = object(name, &file).unwrap().to_vec();
            let digest = Digest::of(&object);
            let package = Arc::new(Package {
                manifest,
                objects: [(file, object)].into(),
                readme: None,
                license_text: None,
            });
            shelf.put(digest.clone(), Arc::clone(&package));
            located.insert(format!("{name}@*"), Located { digest, package, signed_by: None });
        }
        Self {
            pair: Pair::new().unwrap(),
            bpffs: BpffsDir::new().unwrap(),
            dir: tempfile::tempdir().unwrap(),
            shelf: Arc::new(shelf),
            located,
        }
    }

    /// Runs in the host's namespace.
    pub fn here<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        self.pair.host.run(|| Ok(body())).unwrap()
    }

    /// A loader starts here.
    pub fn start(&self) -> Loader {
        self.here(|| {
            let kernel = Arc::new(AyaKernel::new(self.bpffs.path()).unwrap());
            let packages = Arc::clone(&self.shelf) as _;
            fake::engine("web1".parse().unwrap(), kernel, self.dir.path(), packages).unwrap()
        })
    }

    /// Applies chains.
    pub fn apply(&self, loader: &Loader, chains: &Value) -> Result<ApplyReply, LoaderError> {
        let document: DesiredState = resolve::check(json!({ "chains": chains }))?;
        let asked = resolve::resolve(&document, &self.located, &BTreeMap::new())?;
        self.here(|| loader.apply(asked, &options()))
    }

    /// The chain on a hook, of the first interface that has one.
    pub fn status(&self, loader: &Loader, hook: Hook) -> ChainStatus {
        let reply = self.here(|| loader.get(&GetRequest::default())).unwrap();
        reply.chains.into_iter().find(|chain| chain.hook == hook).unwrap()
    }

    /// Answers to three pings.
    pub fn pings(&self) -> u32 {
        ping(&self.pair, 3).unwrap()
    }

    /// Runs a program in the host's namespace; its standard output.
    pub fn exec(&self, command: &[&str]) -> String {
        self.pair.host.exec(command).unwrap()
    }

    /// Files under the pins' directory.
    pub fn pins(&self) -> usize {
        fn count(dir: &std::path::Path) -> usize {
            let entries = fs::read_dir(dir).unwrap().flatten();
            entries.map(|e| if e.path().is_dir() { count(&e.path()) } else { 1 }).sum()
        }
        count(self.bpffs.path())
    }
}

/// A change by somebody.
pub fn options() -> Options {
    Options {
        expected_generation: None,
        dry_run: false,
        atomic: false,
        by: "u-test".parse().unwrap(),
        until: None,
    }
}
