//! Packages made by tests from a manifest and C source text, applied by the loader's engine, and asked
//! of the kernel: its maps, and the attached program by `BPF_PROG_TEST_RUN`.

use crate::engine::{Host, Loader, options};
use canopy_api::{
    ChainKey, DesiredState, Digest, Hook,
    document::{self, Format},
    wire::{ApplyReply, DeleteRequest, GetRequest},
};
use canopy_kernel_aya::{
    pins::Pins,
    sys::{self, TestRun},
};
use canopy_loader::{
    core::resolve::{self, Located},
    engine::Options,
    error::LoaderError,
};
use canopy_package::{Manifest, Package};
use canopy_test_support::pair::HOST_LINK;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Mutex},
};

/// An object of C source text, compiled once a process.
///
/// # Panics
///
/// When it does not compile.
pub fn compile_text(source: &str) -> Arc<[u8]> {
    static OBJECTS: Mutex<BTreeMap<String, Arc<[u8]>>> = Mutex::new(BTreeMap::new());
    let known = OBJECTS.lock().unwrap().get(source).cloned();
    if let Some(object) = known {
        return object;
    }
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("test.bpf.c"), dir.path().join("object.o"));
    let head = "// SPDX-License-Identifier: GPL-2.0\n#include <linux/bpf.h>\n\
                #include <bpf/bpf_helpers.h>\nchar _license[] SEC(\"license\") = \"GPL\";\n";
    fs::write(&path, format!("{head}{source}")).unwrap();
    canopy_test_support::compile_with(&path, &out, &[]).unwrap();
    let object: Arc<[u8]> = fs::read(&out).unwrap().into();
    OBJECTS.lock().unwrap().insert(source.to_owned(), Arc::clone(&object));
    object
}

/// A host on which packages of tests are applied.
pub struct Bench {
    /// The host.
    pub host: Host,
    /// Its loader.
    pub loader: Loader,
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

impl Bench {
    /// A new one, with nothing applied.
    ///
    /// # Panics
    ///
    /// Without root.
    pub fn new() -> Self {
        let host = Host::new();
        let loader = host.start();
        Self { host, loader }
    }

    /// Makes a package the newest of its name: `more` are lines of its manifest (`config`, `maps`).
    ///
    /// # Panics
    ///
    /// When manifest or source are wrong.
    pub fn publish(&mut self, name: &str, version: &str, function: &str, more: &str, source: &str) {
        let frags = source.contains("SEC(\"xdp.frags\")");
        let text = format!(
            "name: {name}\nversion: {version}\ndescription: d\nlicense: GPL-2.0-only\nprograms:\n\
             - {{ name: p, object: p.o, function: {function}, hooks: [xdp], frags: {frags} }}\n{more}"
        );
        let manifest: Manifest = document::load(&text, Format::Yaml).unwrap();
        manifest.check().unwrap();
        let object = compile_text(source);
        let package = Arc::new(Package {
            manifest,
            objects: [("p.o".to_owned(), object.to_vec())].into(),
            readme: None,
            license_text: None,
        });
        let digest = Digest::of(format!("{text}{source}").as_bytes());
        self.host.shelf.put(digest.clone(), Arc::clone(&package));
        let located = Located { digest, package, signed_by: None };
        self.host.located.insert(format!("{name}@*"), located);
    }

    /// One more interface, which carries no packets.
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    pub fn interface(&self, name: &str) {
        let peer = format!("{name}p");
        self.host.exec(&["ip", "link", "add", name, "type", "veth", "peer", "name", &peer]);
    }

    /// Applies chains of XDP programs: interface and programs of each.
    pub fn apply_all(
        &self,
        chains: &[(&str, Value)],
        options: &Options,
    ) -> Result<ApplyReply, LoaderError> {
        let chains: Vec<Value> = chains
            .iter()
            .map(|(interface, programs)| {
                json!({ "interface": interface, "hook": "xdp", "programs": programs })
            })
            .collect();
        let document: DesiredState = resolve::check(json!({ "chains": chains }))?;
        let wishes = resolve::resolve(&document, &self.host.located, &BTreeMap::new())?;
        self.host.here(|| self.loader.apply(wishes, options))
    }

    /// Applies the chain of the veth pair.
    pub fn apply(&self, programs: Value) -> Result<ApplyReply, LoaderError> {
        self.apply_all(&[(HOST_LINK, programs)], &options())
    }

    /// Applies the chain of the veth pair, which has to succeed; what is noted.
    ///
    /// # Panics
    ///
    /// When it is refused.
    pub fn applied(&self, programs: Value) -> Vec<String> {
        match self.apply(programs) {
            Ok(reply) => reply.chains.into_iter().flat_map(|chain| chain.notes).collect(),
            Err(error) => panic!("{}", canopy_loader::error::with_causes(&error)),
        }
    }

    /// The text of a refusal, with what to do, after which everything is as before.
    ///
    /// # Panics
    ///
    /// When it is not refused, or something changed.
    pub fn refusal(&self, chains: &[(&str, Value)]) -> String {
        let before = self.programs();
        let error = self.apply_all(chains, &options()).unwrap_err().into_api();
        assert_eq!(self.programs(), before, "a refused apply changed something");
        format!("{error:?}")
    }

    /// Removes one program of the veth pair's chain.
    pub fn delete(&self, program: &str) -> Result<ApplyReply, LoaderError> {
        let request = DeleteRequest {
            program: Some(program.parse().unwrap()),
            ..serde_json::from_value(json!({ "interface": HOST_LINK, "hook": "xdp" })).unwrap()
        };
        self.host.here(|| self.loader.delete(&request, &options()))
    }

    /// Kernel ids of the attached programs, by interface.
    fn programs(&self) -> Vec<(String, u32)> {
        let reply = self.host.here(|| self.loader.get(&GetRequest::default())).unwrap();
        let chains = reply.chains.into_iter();
        chains
            .filter_map(|chain| Some((chain.interface.to_string(), chain.observed?.program_id)))
            .collect()
    }

    fn running(&self, interface: &str) -> (ChainKey, u64) {
        let key = ChainKey { netns: None, interface: interface.parse().unwrap(), hook: Hook::Xdp };
        let reply = self.host.here(|| self.loader.get(&GetRequest::default())).unwrap();
        let chain = reply.chains.into_iter().find(|chain| chain.interface == key.interface);
        (key, chain.unwrap().observed.unwrap().generation)
    }

    /// Runs the chain of an interface on a packet: its verdict.
    ///
    /// # Panics
    ///
    /// When nothing is attached.
    pub fn verdict_on(&self, interface: &str) -> u32 {
        let (key, generation) = self.running(interface);
        let prog = sys::obj_get(&self.pins().prog(&key, generation)).unwrap();
        loop {
            match sys::prog_test_run(&prog, &TestRun { data: &[0; 64], ..TestRun::default() }) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                result => return result.unwrap().retval,
            }
        }
    }

    /// Runs the chain of the veth pair on a packet.
    pub fn verdict(&self) -> u32 {
        self.verdict_on(HOST_LINK)
    }

    /// Where a map of a member of the running generation is pinned.
    ///
    /// # Panics
    ///
    /// When nothing is attached.
    pub fn map_path(&self, interface: &str, member: &str, map: &str) -> std::path::PathBuf {
        let (key, generation) = self.running(interface);
        self.pins().map(&key, generation, &member.parse().unwrap(), map)
    }

    /// A map of a member of the veth pair's chain.
    ///
    /// # Panics
    ///
    /// When it is not there.
    pub fn map(&self, member: &str, map: &str) -> sys::Map {
        sys::Map::new(sys::obj_get(&self.map_path(HOST_LINK, member, map)).unwrap()).unwrap()
    }

    /// The keys of a map.
    ///
    /// # Panics
    ///
    /// When it cannot be read.
    pub fn keys(&self, member: &str, map: &str) -> Vec<Vec<u8>> {
        let map = self.map(member, map);
        let (mut keys, mut last) = (Vec::new(), None::<Vec<u8>>);
        while let Some(key) = map.next_key(last.as_deref()).unwrap() {
            keys.push(key.clone());
            last = Some(key);
        }
        keys.sort();
        keys
    }

    /// A 64-bit number in a map of the veth pair's chain, summed over the CPUs.
    ///
    /// # Panics
    ///
    /// When it is not there.
    pub fn number(&self, member: &str, map: &str, key: u32, offset: usize) -> u64 {
        let map = self.map(member, map);
        let value = map.lookup(&key.to_ne_bytes()).unwrap().unwrap();
        let part = |part: &[u8]| u64::from_ne_bytes(part[offset..offset + 8].try_into().unwrap());
        map.split(&value).iter().map(|value| part(value)).sum()
    }

    fn pins(&self) -> Pins {
        Pins::new(self.host.bpffs.path())
    }
}
