//! Maps of a chain on a real interface: what the loader tells of them is what `bpftool` tells, and
//! what it writes is what the program does.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

use canopy_api::{
    ApiError, Code, DesiredState, Digest,
    document::{self, Format},
    wire::{
        MapAccess, MapDeleteRequest, MapDumpRequest, MapEntry, MapFollowRequest, MapGetRequest,
        MapInfo, MapListRequest, MapName, MapRecords, MapSetRequest, MapWrite, MapWriteWhen,
        PAGE_BYTES,
    },
};
use canopy_kernel_aya::AyaKernel;
use canopy_kernel_tests::chain::object;
use canopy_loader::{
    core::resolve::{self, Located},
    engine::{Engine, Options},
    error::LoaderError,
    fake::{self, Shelf},
    follow::Followers,
};
use canopy_package::{Manifest, Package};
use canopy_test_support::{
    bpffs::BpffsDir,
    packet::Udp4,
    pair::{self, HOST_LINK, Pair},
    traffic::send_frames,
    wait_for,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

/// Where nobody listens.
const PORT: u16 = 4242;

/// A chain of one program with every map, on a veth pair.
struct Host {
    pair: Pair,
    loader: Arc<Engine<AyaKernel>>,
    shelf: Arc<Shelf>,
    _bpffs: BpffsDir,
    _dir: tempfile::TempDir,
}

const MANIFEST: &str = "
    name: every
    version: 1.0.0
    description: a map of every type
    license: GPL-2.0-only
    programs: [{ name: every, object: every.o, function: every_map, hooks: [xdp] }]
    config:
    - { name: limit, type: u32, description: d, default: 5, bind: { global: limit } }
    - { name: number, type: u32, description: d, default: 7, bind: { map: numbers, slot: 1, value_size: 4 } }
";

impl Host {
    fn new() -> Self {
        let (pair, bpffs) = (Pair::new().unwrap(), BpffsDir::new().unwrap());
        let dir = tempfile::tempdir().unwrap();
        let shelf = Arc::<Shelf>::default();
        let packages = Arc::clone(&shelf);
        let loader = pair
            .host
            .run(|| {
                let kernel = Arc::new(AyaKernel::new(bpffs.path())?);
                Ok(fake::engine("web1".parse()?, kernel, dir.path(), packages)?)
            })
            .unwrap();
        let host = Self { pair, loader: Arc::new(loader), shelf, _bpffs: bpffs, _dir: dir };
        host.apply(0);
        host
    }

    /// Applies a version of the package, which keeps nothing of the one before.
    fn apply(&self, version: u8) {
        let manifest: Manifest = document::load(MANIFEST, Format::Yaml).unwrap();
        let object = [&object("every_map")[..], &[version]].concat();
        let digest = Digest::of(&object);
        let package = Arc::new(Package {
            manifest,
            objects: [("every.o".to_owned(), object)].into(),
            readme: None,
            license_text: None,
        });
        self.shelf.put(digest.clone(), Arc::clone(&package));
        let document: DesiredState = resolve::check(json!({ "chains": [
            { "interface": HOST_LINK, "hook": "xdp", "programs": [{ "name": "a", "package": "every" }] },
        ]}))
        .unwrap();
        let located =
            BTreeMap::from([("every@*".to_owned(), Located { digest, package, signed_by: None })]);
        let asked = resolve::resolve(&document, &located, &BTreeMap::new()).unwrap();
        let by = "u-test".parse().unwrap();
        let options =
            Options { expected_generation: None, dry_run: false, atomic: false, by, until: None };
        let applied = self.pair.host.run(|| Ok(self.loader.apply(asked, &options))).unwrap();
        applied.unwrap_or_else(|error| {
            let error = error.into_api();
            panic!("{error} {:?}", error.problems)
        });
    }

    fn list(&self) -> BTreeMap<String, MapInfo> {
        let list = self.loader.map_list(&MapListRequest::default(), PAGE_BYTES).unwrap();
        assert_eq!(list.notes, [] as [&str; 0]);
        list.maps.into_iter().map(|info| (info.name.map.clone(), info)).collect()
    }

    fn id(&self, map: &str) -> String {
        self.list()[map].id.to_string()
    }

    /// Everything a map has, page by page.
    fn dump(&self, map: &str, limit: u32) -> Vec<MapEntry> {
        let (mut entries, mut cursor) = (Vec::new(), None);
        loop {
            let request = MapDumpRequest { map: name(map), limit: Some(limit), cursor };
            let mut page =
                self.loader.map_dump(&request, PAGE_BYTES).unwrap_or_else(|e| panic!("{map}: {e}"));
            entries.append(&mut page.entries);
            cursor = page.next;
            if cursor.is_none() {
                return entries;
            }
        }
    }

    fn try_set(&self, map: &str, entries: &[(Value, Value)]) -> Result<u64, ApiError> {
        let entries = entries
            .iter()
            .map(|(key, value)| MapWrite {
                key: key.clone(),
                value: Some(value.clone()),
                cpus: Vec::new(),
            })
            .collect();
        let request =
            MapSetRequest { map: name(map), entries, when: MapWriteWhen::Any, dry_run: false };
        self.loader.map_set(&request).map(|reply| reply.changed).map_err(LoaderError::into_api)
    }

    fn set(&self, map: &str, entries: &[(Value, Value)]) {
        let changed = self.try_set(map, entries).unwrap_or_else(|e| panic!("{map}: {e} {e:?}"));
        assert_eq!(changed, u64::try_from(entries.len()).unwrap());
    }

    fn delete(&self, map: &str, keys: &[Value]) -> (u64, Vec<Value>) {
        let request = MapDeleteRequest { map: name(map), keys: keys.to_vec(), dry_run: false };
        let reply = self.loader.map_delete(&request).unwrap();
        (reply.changed, reply.absent)
    }

    fn get(&self, map: &str, key: &Value) -> Option<Value> {
        let request = MapGetRequest { map: name(map), keys: vec![key.clone()] };
        self.loader.map_get(&request).unwrap().entries.pop()?.value
    }

    /// Sends packets; how many came through.
    fn send(&self, count: usize) -> u64 {
        let frame = Udp4::to_port(PORT).frame();
        let arrived = || self.pair.host.run(|| pair::udp_counter("NoPorts")).unwrap();
        let (before, seen) = (arrived(), self.seen());
        let sent = send_frames(&self.pair, &vec![frame; count]).unwrap();
        assert_eq!(sent, u64::try_from(count).unwrap());
        wait_for(Duration::from_secs(5), "every packet seen by the program", || {
            let now = self.seen();
            if now == seen + sent { Ok(()) } else { Err(format!("{now} of {}", seen + sent)) }
        })
        .unwrap();
        // The stack has them in the same softirq.
        let rule = self.get("verdicts", &json!(PORT));
        if rule.is_some_and(|rule| rule["act"] == "ACT_DROP") {
            return arrived() - before;
        }
        wait_for(Duration::from_secs(5), "every packet in the stack", || {
            let now = arrived() - before;
            if now == sent { Ok(now) } else { Err(format!("{now} of {sent}")) }
        })
        .unwrap()
    }

    fn seen(&self) -> u64 {
        self.dump("packets", 1)[0].sum.as_ref().unwrap().as_u64().unwrap()
    }
}

fn name(map: &str) -> MapName {
    MapName {
        netns: None,
        interface: HOST_LINK.parse().unwrap(),
        hook: canopy_api::Hook::Xdp,
        program: "a".parse().unwrap(),
        map: map.to_owned(),
    }
}

fn bpftool(arguments: &[&str]) -> Value {
    let output = std::process::Command::new("bpftool").arg("-j").args(arguments).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        let said = String::from_utf8_lossy(&output.stderr);
        panic!("bpftool {arguments:?}: {error} {said}")
    })
}

/// `["0x01","0x02"]`
fn bytes(list: &Value) -> Vec<u8> {
    let list = list.as_array().unwrap_or_else(|| panic!("{list}"));
    list.iter()
        .map(|byte| {
            u8::from_str_radix(byte.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
        })
        .collect()
}

fn rule(act: &str, weight: u32, name: &str) -> Value {
    json!({ "act": act, "weight": weight, "hits": 0, "name": name })
}

#[test]
fn what_is_listed_is_what_bpftool_says() {
    let host = Host::new();
    let list = host.list();
    let names: Vec<&str> = list.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            ".bss", ".data", ".rodata", "bloom", "by_index", "events", "first", "locks", "numbers",
            "packets", "ports", "prefixes", "queue", "recent", "stack", "verdicts"
        ]
    );
    for (name, info) in &list {
        let told = bpftool(&["map", "show", "id", &info.id.to_string()]);
        assert_eq!(told["type"], info.kind.as_str(), "{name}");
        assert_eq!(told["bytes_key"].as_u64().unwrap_or(0), u64::from(info.key_size), "{name}");
        assert_eq!(told["bytes_value"].as_u64().unwrap_or(0), u64::from(info.value_size), "{name}");
        assert_eq!(told["max_entries"], info.max_entries, "{name}");
        assert_eq!(told["bytes_memlock"].as_u64(), info.memory, "{name}");
        let frozen = told["frozen"] == 1;
        assert_eq!(frozen, name == ".rodata", "{name}");
        let access = match name.as_str() {
            ".rodata" | "by_index" => MapAccess::Read,
            "queue" | "stack" => MapAccess::Peek,
            "bloom" | "events" => MapAccess::Nothing,
            _ => MapAccess::ReadWrite,
        };
        assert_eq!(info.access, access, "{name}");
    }
    assert_eq!(list["prefixes"].flags, ["no_prealloc"]);
    assert_eq!(
        list["prefixes"].key_type.as_deref(),
        Some("struct prefix { __u32 length; __u8 address[4]; }")
    );
    assert_eq!(list["numbers"].settings, ["number"]);
    assert_eq!(list[".rodata"].settings, ["limit"]);
    let cpus = canopy_kernel_aya::sys::possible_cpus().unwrap();
    assert_eq!(list["ports"].values as usize, cpus);
}

#[test]
fn what_is_written_is_what_the_program_does() {
    let host = Host::new();
    assert_eq!(host.send(10), 10);
    host.set("verdicts", &[(json!(PORT), rule("ACT_DROP", 9, "web"))]);
    assert_eq!(host.send(10), 0, "dropped by what was written");
    assert_eq!(
        host.get("verdicts", &json!(PORT)),
        Some(json!({ "act": "ACT_DROP", "weight": 9, "hits": 10, "name": "web" }))
    );
    let port = PORT.to_be_bytes().map(|byte| format!("{byte:#04x}"));
    let told = bpftool(&[
        "map",
        "lookup",
        "id",
        &host.id("verdicts"),
        "key",
        "hex",
        &port[0][2..],
        &port[1][2..],
    ]);
    let mut want = 1_u32.to_ne_bytes().to_vec();
    want.extend(9_u32.to_ne_bytes());
    want.extend(10_u64.to_ne_bytes());
    want.extend(b"web\0\0\0\0\0");
    assert_eq!(bytes(&told["value"]), want);

    assert_eq!(host.delete("verdicts", &[json!(PORT), json!(1)]), (1, vec![json!(1)]));
    assert_eq!(host.send(10), 10, "deleted");
    assert_eq!(host.delete("verdicts", &[json!(PORT)]), (0, vec![json!(PORT)]));

    // A prefix over the sender's address, in a trie; the kernel answers with the longest match.
    let prefix = |length: u32, last: u8| json!({ "length": length, "address": [10, 77, 0, last] });
    host.set("prefixes", &[(prefix(8, 0), json!(1)), (prefix(31, 2), json!(2))]);
    assert_eq!(host.get("prefixes", &prefix(32, 3)), Some(json!(2)));
    assert_eq!(host.get("prefixes", &prefix(32, 9)), Some(json!(1)));
    let too_long = host.try_set("prefixes", &[(prefix(33, 0), json!(1))]).unwrap_err();
    assert_eq!((too_long.code, too_long.path.as_str()), (Code::Invalid, "entries[0]"));

    // A variable of the program, between its others.
    let seen = host.get(".bss", &json!("seen"));
    host.set(".data", &[(json!("level"), json!(77)), (json!("half"), json!(500))]);
    assert_eq!(host.get(".data", &json!("level")), Some(json!(77)));
    host.delete("prefixes", &[prefix(8, 0), prefix(31, 2)]);
    host.send(1);
    let now = host.get(".bss", &json!("seen")).unwrap().as_u64().unwrap();
    assert_eq!(now, seen.unwrap().as_u64().unwrap() + 500, "level > limit: half is added");
}

#[test]
fn a_dump_is_what_bpftool_dumps() {
    let host = Host::new();
    host.set(
        "verdicts",
        &[
            (json!(1), rule("ACT_PASS", 1, "one")),
            (json!(65535), rule("ACT_DROP", 2, "")),
            (json!(PORT), rule("ACT_PASS", 3, "name678")),
        ],
    );
    let prefix =
        |length: u32, third: u8| json!({ "length": length, "address": [10, 77, third, 0] });
    host.set("prefixes", &[(prefix(24, 7), json!(7)), (prefix(16, 0), json!(6))]);
    host.delete("prefixes", &[prefix(16, 0)]);
    host.set("locks", &[(json!(0), json!({ "count": 4 }))]);
    host.send(5);
    let value = |map: &str, entry: &MapEntry| match map {
        "verdicts" => {
            let value = entry.value.as_ref().unwrap();
            let act = u32::from(value["act"] == "ACT_DROP");
            let mut bytes = act.to_ne_bytes().to_vec();
            bytes.extend(u32::try_from(value["weight"].as_u64().unwrap()).unwrap().to_ne_bytes());
            bytes.extend(value["hits"].as_u64().unwrap().to_ne_bytes());
            let mut name = value["name"].as_str().unwrap().as_bytes().to_vec();
            name.resize(8, 0);
            [bytes, name].concat()
        }
        "locks" => {
            let value = entry.value.as_ref().unwrap();
            assert_eq!(value["lock"], "(bpf_spin_lock)");
            let count = u32::try_from(value["count"].as_u64().unwrap()).unwrap();
            [0_u32, count].map(u32::to_ne_bytes).concat()
        }
        _ => {
            let number = entry.value.as_ref().unwrap().as_i64().unwrap();
            i32::try_from(number).unwrap().to_ne_bytes().to_vec()
        }
    };
    let key = |map: &str, entry: &MapEntry| match map {
        "verdicts" => u16::try_from(entry.key.as_u64().unwrap()).unwrap().to_be_bytes().to_vec(),
        "prefixes" => {
            let length = u32::try_from(entry.key["length"].as_u64().unwrap()).unwrap();
            let address = entry.key["address"].as_array().unwrap();
            let address = address.iter().map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap());
            length.to_ne_bytes().into_iter().chain(address).collect()
        }
        _ => u32::try_from(entry.key.as_u64().unwrap()).unwrap().to_ne_bytes().to_vec(),
    };
    for map in ["verdicts", "numbers", "recent", "prefixes", "locks"] {
        let ours: BTreeMap<_, _> =
            host.dump(map, 2).iter().map(|entry| (key(map, entry), value(map, entry))).collect();
        let theirs = bpftool(&["map", "dump", "id", &host.id(map)]);
        let theirs: BTreeMap<_, _> = theirs
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| (bytes(&entry["key"]), bytes(&entry["value"])))
            .collect();
        assert!(!theirs.is_empty(), "{map} has nothing to compare");
        assert_eq!(ours, theirs, "{map}");
    }
    assert_eq!(host.get("locks", &json!(0)).unwrap()["count"], 9, "four, and one a packet");

    // Per CPU, as array and as hash.
    for (map, first) in [("packets", 5), ("ports", 6)] {
        let ours = host.dump(map, 8);
        assert_eq!(ours.len(), 1, "{map}");
        let theirs = bpftool(&["map", "dump", "id", &host.id(map)]);
        let theirs: Vec<u64> = theirs[0]["values"]
            .as_array()
            .unwrap()
            .iter()
            .map(|cpu| {
                let mut value = bytes(&cpu["value"]);
                value.resize(8, 0);
                u64::from_ne_bytes(value.try_into().unwrap())
            })
            .collect();
        let cpus: Vec<u64> = ours[0].cpus.iter().map(|cpu| cpu.as_u64().unwrap()).collect();
        assert_eq!(cpus, theirs, "{map}");
        // The first packet of a port starts its count at two.
        assert_eq!(ours[0].sum, Some(json!(theirs.iter().sum::<u64>())), "{map}");
        assert!(theirs.iter().sum::<u64>() >= first, "{map}");
    }
}

#[test]
fn inner_maps_are_told_by_id_and_variables_by_name() {
    let host = Host::new();
    let entries = host.dump("by_index", 16);
    assert_eq!(entries.len(), 1, "empty places are left out: {entries:?}");
    assert_eq!(entries[0].key, 2);
    assert_eq!(entries[0].value.as_ref().unwrap().to_string(), host.id("first"));
    let refused = host.try_set("by_index", &[(json!(1), json!(1))]).unwrap_err();
    assert!(refused.message.contains("refer to objects of the kernel"), "{refused}");

    let variables = |section: &str| -> Vec<(Value, Value)> {
        let entries = host.dump(section, 16);
        entries.into_iter().map(|entry| (entry.key, entry.value.unwrap())).collect()
    };
    assert_eq!(variables(".rodata"), [(json!("limit"), json!(5))]);
    let mut data = variables(".data");
    data.sort_by_key(|(name, _)| name.to_string());
    assert_eq!(data, [(json!("half"), json!(1)), (json!("level"), json!(3))]);
    assert_eq!(variables(".bss"), [(json!("seen"), json!(0))]);

    let constant = host.try_set(".rodata", &[(json!("limit"), json!(1))]).unwrap_err();
    assert!(constant.message.contains("is constant"), "{constant}");
    let setting = host.try_set("numbers", &[(json!(2), json!(1))]).unwrap_err();
    assert_eq!(setting.message, "\"numbers\" is filled by the setting \"number\" of \"a\"");
    assert_eq!(host.get("numbers", &json!(1)), Some(json!(7)), "the setting");
}

#[test]
fn looking_takes_nothing_from_queue_and_ring_buffer() {
    let host = Host::new();
    host.send(3);
    for map in ["queue", "stack"] {
        for _ in 0..2 {
            let entries = host.dump(map, 16);
            assert_eq!(entries.len(), 1, "{map}");
            assert_eq!((&entries[0].key, &entries[0].value), (&Value::Null, &Some(json!(3))));
        }
    }
    // All three are still there.
    let id = host.id("queue");
    for _ in 0..3 {
        assert_eq!(bytes(&bpftool(&["map", "dequeue", "id", &id])["value"]), 3_u32.to_ne_bytes());
    }
    assert_eq!(host.dump("queue", 16), []);
    for map in ["events", "bloom"] {
        let request = MapDumpRequest { map: name(map), limit: None, cursor: None };
        let error = host.loader.map_dump(&request, PAGE_BYTES).unwrap_err().into_api();
        assert_eq!(error.code, Code::Unsupported, "{map}");
    }
}

#[test]
fn pages_miss_no_entry_while_others_go() {
    let host = Host::new();
    for from in (0..10_000_u32).step_by(1000) {
        let entries: Vec<_> =
            (from..from + 1000).map(|port| (json!(port), rule("ACT_PASS", port, ""))).collect();
        host.set("verdicts", &entries);
    }
    let mut seen = BTreeSet::new();
    let (mut cursor, mut pages) = (None, 0);
    loop {
        let request = MapDumpRequest { map: name("verdicts"), limit: Some(300), cursor };
        let page = host.loader.map_dump(&request, PAGE_BYTES).unwrap();
        let keys: Vec<Value> = page.entries.iter().map(|entry| entry.key.clone()).collect();
        for entry in &page.entries {
            assert_eq!(entry.value.as_ref().unwrap()["weight"], entry.key);
            assert!(seen.insert(entry.key.as_u64().unwrap()), "{} twice", entry.key);
        }
        // What was shown goes, with the entry at which the page ended.
        if !keys.is_empty() {
            assert_eq!(host.delete("verdicts", &keys).1, [] as [Value; 0]);
        }
        pages += 1;
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen.len(), 10_000);
    assert!(pages > 30, "{pages}");
    assert_eq!(host.dump("verdicts", 300), []);
}

/// The kernel begins a trie anew after a prefix that is gone, and a look-up of one finds what it lies in.
#[test]
fn pages_of_a_trie_go_on_behind_prefixes_that_are_gone() {
    let host = Host::new();
    let prefix = |length: u32, a: u8, b: u8| json!({ "length": length, "address": [10, a, b, 0] });
    let keys = vec![
        prefix(0, 0, 0),
        prefix(8, 0, 0),
        prefix(9, 128, 0),
        prefix(16, 1, 0),
        prefix(17, 1, 128),
        prefix(24, 1, 200),
        prefix(24, 1, 201),
        prefix(23, 1, 200),
        prefix(24, 130, 1),
        prefix(16, 130, 0),
        prefix(24, 200, 3),
        prefix(20, 200, 0),
        prefix(22, 201, 4),
    ];
    let name_of = |key: &Value| key.to_string();
    let all: BTreeSet<String> = keys.iter().map(name_of).collect();
    for limit in [1, 3] {
        let entries: Vec<_> = keys.iter().map(|key| (key.clone(), json!(1))).collect();
        host.set("prefixes", &entries);
        // Where nothing changes, whatever the pages, it is what the kernel tells.
        let told = bpftool(&["map", "dump", "id", &host.id("prefixes")]);
        let order = |limit| host.dump("prefixes", limit).into_iter().map(|entry| entry.key);
        let whole: Vec<Value> = order(4096).collect();
        assert_eq!(whole.len(), told.as_array().unwrap().len());
        assert_eq!(order(limit).collect::<Vec<_>>(), whole);

        let (mut seen, mut cursor) = (BTreeSet::new(), None);
        loop {
            let request = MapDumpRequest { map: name("prefixes"), limit: Some(limit), cursor };
            let page = host.loader.map_dump(&request, PAGE_BYTES).unwrap();
            let shown: Vec<Value> = page.entries.iter().map(|entry| entry.key.clone()).collect();
            for key in &shown {
                assert!(seen.insert(name_of(key)), "{key} twice in pages of {limit}");
            }
            // What was shown goes; what it lies in stays until it is shown.
            if !shown.is_empty() {
                assert_eq!(host.delete("prefixes", &shown).1, [] as [Value; 0]);
            }
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen, all, "pages of {limit}");
        assert_eq!(host.dump("prefixes", 4096), []);
    }
}

#[test]
fn a_full_map_is_told_with_what_was_written() {
    let host = Host::new();
    let prefixes: Vec<_> = (0..20_u8)
        .map(|i| (json!({ "length": 32, "address": [192, 0, 2, i] }), json!(i)))
        .collect();
    let error = host.try_set("prefixes", &prefixes).unwrap_err();
    assert_eq!((error.code, error.path.as_str()), (Code::Conflict, "entries[16]"));
    assert_eq!(
        error.message,
        "it is full: it has room for 16 entries; entries[0] to entries[15] were written, nothing \
         else"
    );
    let theirs = bpftool(&["map", "dump", "id", &host.id("prefixes")]);
    assert_eq!(theirs.as_array().unwrap().len(), 16);
}

#[test]
fn a_followed_ring_buffer_tells_every_packet_over_changes_of_the_chain() {
    let host = Host::new();
    let kept = Arc::new(Mutex::new(Vec::<MapRecords>::new()));
    let sink = Arc::clone(&kept);
    let followers = Followers::new(
        Arc::clone(&host.loader),
        Arc::new(move |event| {
            sink.lock().unwrap().push(event);
            true
        }),
        Duration::from_mins(10),
    );
    // What was there before somebody followed is told too.
    host.send(20);
    let request = MapFollowRequest { map: name("events"), record_type: None };
    let reply = followers.follow(&request).unwrap();
    assert_eq!(
        reply.record_type.unwrap(),
        "struct event { __be16 port; __u16 unused; __u32 number; }"
    );
    for version in 1..=3 {
        host.send(50);
        host.apply(version);
    }
    host.send(50);
    let numbers = wait_for(Duration::from_secs(10), "a record of every packet", || {
        let events = kept.lock().unwrap();
        let records = events.iter().flat_map(|event| {
            (event.first..).zip(&event.records).map(|(number, record)| {
                assert_eq!(record["port"], json!(PORT));
                (number, event.generation, record["number"].as_u64().unwrap())
            })
        });
        let records: Vec<_> = records.collect();
        if records.len() >= 220 { Ok(records) } else { Err(format!("{} of 220", records.len())) }
    })
    .unwrap();
    let counted: Vec<u64> = numbers.iter().map(|(number, ..)| *number).collect();
    assert_eq!(counted, (0..220).collect::<Vec<_>>());
    // Each generation counts its packets from one; the first has those of two sendings.
    let said: Vec<u64> = numbers.iter().map(|(.., number)| *number).collect();
    let want: Vec<u64> = (1..=70).chain(1..=50).chain(1..=50).chain(1..=50).collect();
    assert_eq!(said, want);
    let generations: BTreeSet<u64> = numbers.iter().map(|(_, generation, _)| *generation).collect();
    assert_eq!(generations.len(), 4);
    assert!(kept.lock().unwrap().iter().all(|event| event.dropped == 0));
}
