//! A host to experiment with: what is in it outlives any loader that runs on it.

use crate::{
    core::resolve::{self, Located, Wish},
    engine::{Engine, Options, Parts, Stage},
    error::LoaderError,
    fake::Shelf,
    store::{Store, StoreError},
};
use canopy_api::{
    ChainKey, DesiredState, Digest, Hook, ProgramName,
    wire::{ApplyReply, ChainStatus, DeleteRequest, GetReply, GetRequest},
};
use canopy_kernel::fake::{Call, Crashed, FakeKernel};
use canopy_package::{
    Manifest, Package, PublicKey,
    manifest::{Bind, ManifestMap, ManifestProgram, Parameter, ParameterType, Requires, Variant},
};
use serde_json::{Value, json};
use std::{
    cell::Cell,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// XDP verdict slots.
pub(super) const DROP: u8 = 1;
pub(super) const PASS: u8 = 2;

/// Something that happens at a stage.
type Plan = (Stage, fn(&FakeKernel));

thread_local! {
    static DIE_AT: Cell<Option<Stage>> = const { Cell::new(None) };
    static CLOCK: Cell<u64> = const { Cell::new(1_000_000) };
    static AT_STAGE: Cell<Option<Plan>> = const { Cell::new(None) };
    static KERNEL: std::cell::RefCell<Option<Arc<FakeKernel>>> = const { std::cell::RefCell::new(None) };
}

fn on_stage(stage: Stage) {
    if let Some((at, act)) = AT_STAGE.get()
        && at == stage
    {
        AT_STAGE.set(None);
        KERNEL.with_borrow(|kernel| act(kernel.as_ref().unwrap()));
    }
    if DIE_AT.get() == Some(stage) {
        DIE_AT.set(None);
        std::panic::resume_unwind(Box::new(Crashed));
    }
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(CLOCK.get())
}

/// Lets time go by.
pub(super) fn wait(seconds: u64) {
    CLOCK.set(CLOCK.get() + seconds);
}

/// Somebody sets the clock back.
pub(super) fn set_back(seconds: u64) {
    CLOCK.set(CLOCK.get() - seconds);
}

/// The process dies at this stage of the next change.
pub(super) fn die_at(stage: Stage) {
    DIE_AT.set(Some(stage));
}

/// Somebody does this to the kernel at this stage of the next change.
pub(super) fn at_stage(stage: Stage, act: fn(&FakeKernel)) {
    AT_STAGE.set(Some((stage, act)));
}

/// No death is planned any more.
pub(super) fn live() {
    DIE_AT.set(None);
    AT_STAGE.set(None);
}

/// A host.
pub(super) struct World {
    pub(super) kernel: Arc<FakeKernel>,
    pub(super) shelf: Arc<Shelf>,
    pub(super) dir: tempfile::TempDir,
    newest: BTreeMap<String, Located>,
}

impl World {
    /// A host with `eth0` and `eth1`, and packages `block` and `limit` 1.0.0.
    pub(super) fn new() -> Self {
        live();
        let kernel = Arc::new(FakeKernel::default());
        kernel.add_interface(&"eth0".parse().unwrap());
        kernel.add_interface(&"eth1".parse().unwrap());
        KERNEL.with_borrow_mut(|slot| *slot = Some(Arc::clone(&kernel)));
        // In memory where there is such a place: nothing here waits for a disk.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let mut world = Self { kernel, shelf: Arc::default(), dir, newest: BTreeMap::new() };
        world.publish("block", "1.0.0");
        world.publish("limit", "1.0.0");
        world
    }

    /// What happens at a stage happens to this host's kernel from now on; the last one made has it else.
    pub(super) fn attend(&self) {
        KERNEL.with_borrow_mut(|slot| *slot = Some(Arc::clone(&self.kernel)));
    }

    /// A new version of a package becomes what its bare name means.
    pub(super) fn publish(&mut self, name: &str, version: &str) {
        self.publish_object(name, version, format!("{name} {version}").as_bytes());
    }

    /// The same with this object in it.
    pub(super) fn publish_object(&mut self, name: &str, version: &str, object: &[u8]) {
        self.publish_as(name, version, object, &[], |_| {});
    }

    /// The same with another manifest.
    pub(super) fn publish_with(
        &mut self,
        name: &str,
        version: &str,
        object: &[u8],
        change: impl FnOnce(&mut Manifest),
    ) {
        self.publish_as(name, version, object, &[], change);
    }

    /// The same with more objects of the program, each with what it needs.
    pub(super) fn publish_variants(
        &mut self,
        name: &str,
        version: &str,
        object: &[u8],
        variants: &[(&str, Requires)],
    ) {
        self.publish_as(name, version, object, variants, |_| {});
    }

    fn publish_as(
        &mut self,
        name: &str,
        version: &str,
        object: &[u8],
        variants: &[(&str, Requires)],
        change: impl FnOnce(&mut Manifest),
    ) {
        let mut manifest = Manifest {
            name: name.parse().unwrap(),
            version: version.parse().unwrap(),
            description: String::new(),
            license: "GPL-2.0-only".to_owned(),
            keywords: Vec::new(),
            authors: Vec::new(),
            requires: Requires::default(),
            programs: vec![ManifestProgram {
                name: "main".to_owned(),
                object: "main.o".to_owned(),
                variants: variants
                    .iter()
                    .map(|(object, requires)| Variant {
                        object: (*object).to_owned(),
                        requires: requires.clone(),
                    })
                    .collect(),
                function: format!("{name}_main"),
                hooks: Hook::ALL.to_vec(),
                priority: 100,
                proceed_on: None,
                frags: false,
                tail_calls: None,
            }],
            config: vec![Parameter {
                name: "ports".to_owned(),
                kind: ParameterType::Ports,
                description: String::new(),
                unit: None,
                default: Some(json!([])),
                min: None,
                max: None,
                bind: Bind::Keys { keys: "ports".to_owned() },
            }],
            metrics: Vec::new(),
            maps: ["kept", "other"]
                .map(|map| ManifestMap {
                    name: map.to_owned(),
                    carry_over: map == "kept",
                    shared: None,
                    max_entries: None,
                })
                .to_vec(),
        };
        change(&mut manifest);
        let package = Package {
            manifest,
            // The bytes of a variant are its name.
            objects: variants
                .iter()
                .map(|(name, _)| ((*name).to_owned(), name.as_bytes().to_vec()))
                .chain([("main.o".to_owned(), object.to_vec())])
                .collect(),
            readme: None,
            license_text: None,
        };
        let digest = Digest::of(object);
        let package = Arc::new(package);
        self.shelf.put(digest.clone(), Arc::clone(&package));
        for requirement in ["*".to_owned(), format!("={}", package.manifest.version)] {
            let located =
                Located { digest: digest.clone(), package: Arc::clone(&package), signed_by: None };
            self.newest.insert(format!("{name}@{requirement}"), located);
        }
    }

    /// What is published of a package so far is signed by this key.
    pub(super) fn sign(&mut self, name: &str, key: &PublicKey) {
        let mine = |located: &&mut Located| located.package.manifest.name.as_str() == name;
        for located in self.newest.values_mut().filter(mine) {
            located.signed_by = Some(key.clone());
        }
    }

    /// A loader starts here.
    pub(super) fn start(&self) -> Engine<FakeKernel> {
        self.try_start().unwrap()
    }

    pub(super) fn try_start(&self) -> Result<Engine<FakeKernel>, StoreError> {
        Engine::start(Parts {
            host: "web1".parse().unwrap(),
            version: "0".to_owned(),
            kernel: Arc::clone(&self.kernel),
            store: Store::open(self.dir.path())?,
            packages: Arc::clone(&self.shelf) as _,
            now,
            on_stage,
        })
    }

    /// Applies a document.
    pub(super) fn apply(
        &self,
        engine: &Engine<FakeKernel>,
        document: Value,
    ) -> Result<ApplyReply, LoaderError> {
        self.apply_with(engine, document, &options())
    }

    pub(super) fn apply_with(
        &self,
        engine: &Engine<FakeKernel>,
        document: Value,
        options: &Options,
    ) -> Result<ApplyReply, LoaderError> {
        engine.apply(self.wishes(document)?, options)
    }

    /// What a document asks for.
    pub(super) fn wishes(&self, document: Value) -> Result<Vec<Wish>, LoaderError> {
        // Without the schema, whose validator costs more than all the rest.
        let document: DesiredState = serde_json::from_value(document).unwrap();
        document.check()?;
        Ok(resolve::resolve(&document, &self.newest, &BTreeMap::new())?)
    }

    /// Kernel calls since the last time, that change something.
    pub(super) fn changing_calls(&self) -> Vec<Call> {
        self.kernel.take_log().into_iter().filter(|call| call.changes()).collect()
    }
}

pub(super) fn options() -> Options {
    Options {
        expected_generation: None,
        dry_run: false,
        atomic: false,
        by: "u-test".parse().unwrap(),
        until: None,
    }
}

/// All or nothing.
pub(super) fn atomic() -> Options {
    Options { atomic: true, ..options() }
}

pub(super) fn rehearsal() -> Options {
    Options { dry_run: true, ..options() }
}

/// Runs until the process dies or the work is done; `None` when it died.
pub(super) fn until_death<T>(work: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => Some(done),
        Err(cause) => {
            assert!(cause.is::<Crashed>(), "a panic that is not a planned death");
            None
        }
    }
}

pub(super) fn eth0() -> ChainKey {
    ChainKey { netns: None, interface: "eth0".parse().unwrap(), hook: Hook::Xdp }
}

pub(super) fn eth1() -> ChainKey {
    ChainKey { netns: None, interface: "eth1".parse().unwrap(), hook: Hook::Xdp }
}

pub(super) fn named(name: &str) -> ProgramName {
    name.parse().unwrap()
}

/// A chain of a document: programs as (name, package, ports).
pub(super) fn chain(interface: &str, programs: &[(&str, &str, &[u16])]) -> Value {
    let programs: Vec<_> = programs
        .iter()
        .map(|(name, package, ports)| {
            json!({ "name": name, "package": package, "config": { "ports": ports } })
        })
        .collect();
    json!({ "interface": interface, "hook": "xdp", "programs": programs })
}

pub(super) fn document(chains: &[Value]) -> Value {
    json!({ "chains": chains })
}

/// `eth0` with `a` from `block` and `b` from `limit`.
pub(super) fn two_programs() -> Value {
    document(&[chain("eth0", &[("a", "block", &[]), ("b", "limit", &[])])])
}

pub(super) fn get(engine: &Engine<FakeKernel>) -> GetReply {
    engine.get(&GetRequest::default()).unwrap()
}

pub(super) fn status(engine: &Engine<FakeKernel>, key: &ChainKey) -> ChainStatus {
    let all = get(engine).chains;
    all.iter().find(|status| status.key() == *key).cloned().unwrap_or_else(|| panic!("{all:?}"))
}

pub(super) fn runs(engine: &Engine<FakeKernel>, key: &ChainKey, name: &str) -> u64 {
    let status = status(engine, key);
    status.programs.iter().find(|p| p.name.as_str() == name).map_or(0, |p| p.runs)
}

pub(super) fn deletion(key: &ChainKey, program: Option<&str>) -> DeleteRequest {
    DeleteRequest {
        netns: key.netns.clone(),
        interface: key.interface.clone().into(),
        hook: key.hook,
        program: program.map(named),
        expected_generation: None,
        dry_run: false,
    }
}
