//! A package of `ebpf/packages`, compiled, bound to settings and fused into a chain of one, as the
//! loader does it; then run on packets without an interface.

use anyhow::{Context, Result, anyhow};
use canopy_api::{
    ChainKey, Hook, ProgramName, TcMode, VerdictSet, XdpMode,
    desired::parse_proceed_on,
    document::{self, Format},
};
use canopy_kernel::{
    Carry, ChainBuild, Kernel as _, KernelError, MapContents, MapEntry, Member, MemberCells,
    SettingsDetail,
};
use canopy_kernel_aya::{
    AyaKernel,
    sys::{self, Map, TestRun, TestRunOutput},
};
use canopy_package::{Manifest, manifest::Select};
use canopy_test_support::{bpffs::BpffsDir, compile, repository};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex},
};

const GENERATION: u64 = 1;

/// A package in the kernel, attached to nothing.
pub struct Loaded {
    kernel: AyaKernel,
    key: ChainKey,
    member: ProgramName,
    program: OwnedFd,
    /// Its manifest.
    pub manifest: Manifest,
    _bpffs: BpffsDir,
}

/// The directory of a package in the source tree.
fn source(package: &str) -> PathBuf {
    repository().join("ebpf/packages").join(package)
}

/// The manifest of a package in the source tree.
pub fn manifest(package: &str) -> Result<Manifest> {
    let path = source(package).join("package.yaml");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let manifest: Manifest = document::load(&text, Format::Yaml)
        .map_err(|problems| anyhow!("{}: {problems}", path.display()))?;
    manifest.check().map_err(|problems| anyhow!("{}: {problems}", path.display()))?;
    Ok(manifest)
}

/// The package's object, compiled once a process.
pub fn object(package: &str, file: &str) -> Result<Arc<[u8]>> {
    static OBJECTS: Mutex<BTreeMap<String, Arc<[u8]>>> = Mutex::new(BTreeMap::new());
    let mut objects = OBJECTS.lock().map_err(|_| anyhow!("{file} did not compile before"))?;
    if let Some(object) = objects.get(file) {
        return Ok(Arc::clone(object));
    }
    let build = tempfile::tempdir()?;
    let path = build.path().join(file);
    compile(&source(package).join(format!("{package}.bpf.c")), &path)?;
    let object: Arc<[u8]> = std::fs::read(&path)?.into();
    objects.insert(file.to_owned(), Arc::clone(&object));
    Ok(object)
}

/// One program of a package as a member of a chain, with these settings.
pub fn member(package: &str, hook: Hook, settings: &Value) -> Result<(Manifest, Member)> {
    let manifest = manifest(package)?;
    let program = manifest
        .programs
        .iter()
        .find(|program| program.hooks.contains(&hook))
        .with_context(|| format!("{package} has no program for {hook}"))?
        .clone();
    let settings = settings.as_object().context("settings are an object")?;
    let bindings = canopy_package::bind(&manifest, settings, "config")
        .map_err(|problems| anyhow!("{problems}"))?;
    let object = object(package, &program.object)?;
    let proceed_on = match &program.proceed_on {
        Some(names) => {
            parse_proceed_on(names, hook, "proceed_on").map_err(|problems| anyhow!("{problems}"))?
        }
        None => VerdictSet::default_for(hook),
    };
    let member = Member {
        name: package.parse()?,
        object,
        function: program.function,
        frags: program.frags,
        tail_calls: program.tail_calls,
        proceed_on,
        globals: bindings.globals,
        map_entries: bindings
            .map_entries
            .into_iter()
            .map(|(map, entries)| MapContents { map, entries })
            .collect(),
        settings: SettingsDetail::default(),
        carry: Carry::Nothing,
        max_entries: Vec::new(),
        shared_maps: Vec::new(),
    };
    Ok((manifest, member))
}

impl Loaded {
    /// Loads the package's program for `hook` with these settings.
    pub fn new(package: &str, hook: Hook, settings: &Value) -> Result<Self> {
        let (manifest, member) = member(package, hook, settings)?;
        let bpffs = BpffsDir::new()?;
        let kernel = AyaKernel::new(bpffs.path())?;
        let key = ChainKey { netns: None, interface: "lo".parse()?, hook };
        let name = member.name.clone();
        kernel
            .prepare(&ChainBuild {
                key: key.clone(),
                generation: GENERATION,
                xdp_mode: XdpMode::Best,
                tc_mode: TcMode::Best,
                members: vec![member],
                together: Vec::new(),
                left_entries: Vec::new(),
            })
            .map_err(explain)?;
        let program = sys::obj_get(&kernel.pins().prog(&key, GENERATION))?;
        Ok(Self { kernel, key, member: name, program, manifest, _bpffs: bpffs })
    }

    /// The program of the chain.
    pub fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    /// Runs the chain on a packet; its verdict.
    pub fn run(&self, packet: &[u8]) -> i32 {
        self.run_many(packet, 1)
    }

    /// Runs the chain on a packet this many times; the last verdict.
    pub fn run_many(&self, packet: &[u8], repeat: u32) -> i32 {
        self.test_run(&TestRun { data: packet, repeat, ..TestRun::default() }).retval.cast_signed()
    }

    /// Runs the chain on a packet with a context; its verdict.
    pub fn run_with(&self, packet: &[u8], context: &[u8]) -> i32 {
        self.test_run(&TestRun { data: packet, context, ..TestRun::default() }).retval.cast_signed()
    }

    fn test_run(&self, run: &TestRun<'_>) -> TestRunOutput {
        loop {
            match sys::prog_test_run(&self.program, run) {
                // A signal (a child that ended) interrupts long runs.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                result => return result.unwrap(),
            }
        }
    }

    /// One of the package's maps.
    pub fn map(&self, name: &str) -> Map {
        let path = self.kernel.pins().map(&self.key, GENERATION, &self.member, name);
        Map::new(sys::obj_get(&path).unwrap()).unwrap()
    }

    /// The entries of one of the package's maps.
    pub fn entries(&self, name: &str) -> Vec<MapEntry> {
        self.kernel
            .map_entries(&self.key, GENERATION, &self.member, name, 1 << 20)
            .map_err(explain)
            .unwrap()
    }

    /// Eight bytes at `offset` of a slot of an array, summed over the CPUs.
    pub fn sum(&self, map: &str, slot: u32, offset: usize) -> u64 {
        let map = self.map(map);
        let value = map.lookup(&slot.to_ne_bytes()).unwrap().unwrap();
        map.split(&value).iter().map(|part| number(part, offset)).sum()
    }

    /// A metric that is one slot of an array, read as the manifest says, by its name.
    pub fn metric(&self, name: &str) -> u64 {
        let metric = self.manifest.metrics.iter().find(|metric| metric.name == name).unwrap();
        match &metric.select {
            Select::Slot(slot) => self.sum(&metric.map, *slot, metric.offset as usize),
            Select::Count => self.entries(&metric.map).len() as u64,
            other => panic!("{name} is not one number: {other:?}"),
        }
    }

    /// The chain's own accounting of the program.
    pub fn cells(&self) -> MemberCells {
        let cells = self.kernel.cells(&self.key, GENERATION).map_err(explain).unwrap();
        assert_eq!(cells.len(), 1);
        cells.into_iter().next().unwrap()
    }
}

/// Eight bytes of a value, in host order.
pub fn number(value: &[u8], offset: usize) -> u64 {
    u64::from_ne_bytes(value[offset..offset + 8].try_into().unwrap())
}

fn explain(error: KernelError) -> anyhow::Error {
    let log = match &error {
        KernelError::Refused { log: Some(log), .. } => format!("\n{log}"),
        _ => String::new(),
    };
    let error = anyhow::Error::new(error);
    anyhow!("{error:#}{log}")
}
