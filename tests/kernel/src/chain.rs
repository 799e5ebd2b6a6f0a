//! Chains of test programs in the kernel, attached to nothing, and run on packets by
//! `BPF_PROG_TEST_RUN`.

use canopy_api::{ChainKey, Hook, ProgramName, TcMode, VerdictSet, XdpMode};
use canopy_kernel::{
    Carry, ChainBuild, Kernel as _, KernelError, Member, MemberCells, Prepared, SettingsDetail,
};
use canopy_kernel_aya::{
    AyaKernel,
    sys::{self, TestRun, TestRunOutput},
};
use canopy_test_support::bpffs::BpffsDir;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

/// The object of a source in `corpus/`, compiled once a process.
pub fn object(name: &str) -> Arc<[u8]> {
    object_with(name, &[])
}

/// As [`object`], with more options for the compiler.
pub fn object_with(name: &str, options: &[&str]) -> Arc<[u8]> {
    static OBJECTS: Mutex<BTreeMap<String, Arc<[u8]>>> = Mutex::new(BTreeMap::new());
    let mut objects = OBJECTS.lock().unwrap();
    let key = format!("{name} {}", options.join(" "));
    if let Some(object) = objects.get(&key) {
        return Arc::clone(object);
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(format!("{name}.bpf.c"));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("object.o");
    canopy_test_support::compile_with(&source, &out, options).unwrap();
    let object: Arc<[u8]> = std::fs::read(&out).unwrap().into();
    objects.insert(key, Arc::clone(&object));
    object
}

/// A member with the hook's usual proceed-on verdicts and nothing else set.
pub fn member(name: &str, hook: Hook, object: &Arc<[u8]>, function: &str) -> Member {
    Member {
        name: name.parse().unwrap(),
        object: Arc::clone(object),
        function: function.to_owned(),
        frags: false,
        tail_calls: None,
        proceed_on: VerdictSet::default_for(hook),
        globals: Vec::new(),
        map_entries: Vec::new(),
        settings: SettingsDetail::default(),
        carry: Carry::Nothing,
        max_entries: Vec::new(),
        shared_maps: Vec::new(),
    }
}

/// An Ethernet frame of 64 bytes with this payload.
pub fn packet(payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 12];
    // An EtherType nobody handles (IEEE 802 local experimental).
    packet.extend_from_slice(&[0x88, 0xb5]);
    packet.extend_from_slice(payload);
    packet.resize(packet.len().max(78), 0);
    packet
}

/// A kernel with pins of its own, removed with it.
#[derive(Debug)]
pub struct Chains {
    /// The kernel.
    pub kernel: AyaKernel,
    bpffs: BpffsDir,
}

impl Default for Chains {
    fn default() -> Self {
        Self::new()
    }
}

impl Chains {
    /// In a directory nobody else uses.
    ///
    /// # Panics
    ///
    /// Without root or a bpffs at `/sys/fs/bpf`.
    pub fn new() -> Self {
        let bpffs = BpffsDir::new().unwrap();
        let kernel = AyaKernel::new(bpffs.path()).unwrap();
        Self { kernel, bpffs }
    }

    /// The chain these tests use on a hook.
    pub fn key(hook: Hook) -> ChainKey {
        ChainKey { netns: None, interface: "lo".parse().unwrap(), hook }
    }

    /// Prepares a generation.
    pub fn prepare(
        &self,
        hook: Hook,
        generation: u64,
        members: Vec<Member>,
    ) -> Result<Prepared, KernelError> {
        let key = Self::key(hook);
        self.kernel.prepare(&ChainBuild {
            key,
            generation,
            xdp_mode: XdpMode::Best,
            tc_mode: TcMode::Best,
            members,
            together: Vec::new(),
            left_entries: Vec::new(),
        })
    }

    /// Prepares a generation that has to load.
    ///
    /// # Panics
    ///
    /// With the error, its remedy and the verifier's log when it does not.
    pub fn load(&self, hook: Hook, generation: u64, members: Vec<Member>) -> Prepared {
        match self.prepare(hook, generation, members) {
            Ok(prepared) => prepared,
            Err(KernelError::Refused { member, reason, remedy, log }) => {
                panic!("{member:?}: {reason}\nremedy: {remedy}\n{}", log.unwrap_or_default())
            }
            Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
        }
    }

    /// Runs a generation on a packet.
    pub fn run(&self, hook: Hook, generation: u64, packet: &[u8]) -> TestRunOutput {
        self.run_many(hook, generation, packet, 1)
    }

    /// Runs a generation on a packet this many times.
    pub fn run_many(
        &self,
        hook: Hook,
        generation: u64,
        packet: &[u8],
        repeat: u32,
    ) -> TestRunOutput {
        let path = self.kernel.pins().prog(&Self::key(hook), generation);
        let prog = sys::obj_get(&path).unwrap();
        loop {
            let run = TestRun { data: packet, repeat, ..TestRun::default() };
            match sys::prog_test_run(&prog, &run) {
                // A child that ended, in another test of this process.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                result => return result.unwrap(),
            }
        }
    }

    /// What a generation counted.
    pub fn cells(&self, hook: Hook, generation: u64) -> Vec<MemberCells> {
        self.kernel.cells(&Self::key(hook), generation).unwrap()
    }

    /// A map of a member.
    pub fn map(&self, hook: Hook, generation: u64, member: &str, map: &str) -> sys::Map {
        let member: ProgramName = member.parse().unwrap();
        let path = self.kernel.pins().map(&Self::key(hook), generation, &member, map);
        let fd = sys::obj_get(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        sys::Map::new(fd).unwrap()
    }

    /// A 64-bit number at an offset of a member's data section.
    pub fn global(&self, hook: Hook, generation: u64, member: &str, map: &str, at: usize) -> u64 {
        let value = self.map(hook, generation, member, map).lookup(&[0; 4]).unwrap().unwrap();
        u64::from_ne_bytes(value[at..at + 8].try_into().unwrap())
    }

    /// Every path below the pins.
    pub fn paths(&self) -> Vec<PathBuf> {
        fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, found);
                }
                found.push(path);
            }
        }
        let mut found = Vec::new();
        walk(self.bpffs.path(), &mut found);
        found.sort();
        found
    }
}
