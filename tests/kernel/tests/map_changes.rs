//! Every kind of map, in every place that it can have, over every change of a chain: what becomes of its
//! contents, and that the kernel has the settings. Asked of the kernel by `bpftool`, by descriptor and by
//! a packet.
//!
//! The table of it is `docs/reference/maps.md`: compared with what was seen; written anew with
//! `CANOPY_WRITE_DOCS=1`. `CANOPY_TEST_FULL=1` makes any two changes one after the other.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a failure is a panic"
)]

use canopy_kernel_aya::sys::{self, Map, MapCreate};
use canopy_kernel_tests::packages::Bench;
use canopy_test_support::{pair::HOST_LINK, process, repository};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::UdpSocket,
    os::fd::{AsRawFd as _, OwnedFd},
    process::Command,
    sync::Mutex,
    thread,
};

/// How settings fill a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    No,
    /// A list of ports.
    Keys,
    /// The first slot of an array.
    Slot,
    /// A list of prefixes, for the two tries together.
    Prefixes,
    /// A variable of a data section: the section's declarations in C, and one more.
    Global(&'static str, &'static str),
}

/// What somebody else puts into a map, to be found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// Nothing can be put there, or nothing be found again.
    None,
    /// A value under this key.
    Entry(&'static [u8]),
    /// A value at the end of a queue.
    Push,
    Program(&'static [u8]),
    Map(&'static [u8]),
    Device(&'static [u8]),
    /// A value of something that has a descriptor: a socket, a file, a process, a cgroup.
    Owner(Owner),
    /// A variable that the program counts in.
    Variable,
}

/// What a storage map keeps a value for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    Socket,
    File,
    Process,
    Cgroup,
}

impl Owner {
    /// One that is there as long as this process: what is kept for it goes with it.
    fn descriptor(self) -> i32 {
        static OPEN: Mutex<BTreeMap<Owner, OwnedFd>> = Mutex::new(BTreeMap::new());
        let open = || -> OwnedFd {
            match self {
                Self::Socket => UdpSocket::bind("127.0.0.1:0").unwrap().into(),
                Self::File => fs::File::open("/dev/null").unwrap().into(),
                Self::Process => process::descriptor().unwrap(),
                Self::Cgroup => {
                    let mounts = fs::read_to_string("/proc/mounts").unwrap();
                    let mut mounts = mounts.lines().map(|line| line.split(' '));
                    let mount = mounts.find(|line| line.clone().nth(2) == Some("cgroup2"));
                    let at = mount.and_then(|mut line| line.nth(1)).unwrap();
                    fs::File::open(at).unwrap().into()
                }
            }
        };
        OPEN.lock().unwrap().entry(self).or_insert_with(open).as_raw_fd()
    }
}

/// A kind of map.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_field_names, reason = "`kind` is the map's type in C")]
struct Kind {
    name: &'static str,
    /// Type and flags in C; empty for data sections.
    kind: &'static str,
    flags: &'static str,
    /// Its keys, values and entries, in C.
    shape: &'static str,
    bound: Bound,
    mark: Mark,
    /// Filled by the object.
    filled: bool,
}

const SHORT: &str = "__uint(max_entries, ENTRIES); __type(key, __u16); __type(value, __u32);";
const SLOTS: &str = "__uint(max_entries, ENTRIES); __type(key, __u32); __type(value, __u32);";
const TRIE4: &str = "__uint(max_entries, ENTRIES); __uint(key_size, 8); __uint(value_size, 8);";
const TRIE6: &str = "__uint(max_entries, ENTRIES); __uint(key_size, 20); __uint(value_size, 8);";
const QUEUE: &str = "__uint(max_entries, ENTRIES); __uint(value_size, 4);";
const RING: &str = "__uint(max_entries, ENTRIES * 4096);";
const LOCAL: &str = "__type(key, int); __type(value, __u32[ENTRIES]);";
const CGROUP: &str = "__type(key, struct bpf_cgroup_storage_key); __type(value, __u32[ENTRIES]);";
const PAGES: &str = "__uint(max_entries, ENTRIES);";
const NINE: &[u8] = &[9, 0];
const ONE: &[u8] = &[1, 0, 0, 0];
const ZERO: &[u8] = &[0; 4];
const THREE: &[u8] = &[3, 0, 0, 0];
const NET4: &[u8] = &[32, 0, 0, 0, 9, 9, 9, 9];
const NET6: &[u8] = &[128, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9];

const fn kind(
    name: &'static str,
    kind: &'static str,
    flags: &'static str,
    shape: &'static str,
    bound: Bound,
    mark: Mark,
) -> Kind {
    Kind { name, kind, flags, shape, bound, mark, filled: false }
}

const fn section(name: &'static str, variables: &'static str, more: &'static str) -> Kind {
    Kind {
        name,
        kind: "",
        flags: "",
        shape: "",
        bound: Bound::Global(variables, more),
        mark: Mark::Variable,
        filled: false,
    }
}

/// The kinds that an XDP program can have on Linux 6.9, with the flags that a type takes.
fn kinds() -> Vec<Kind> {
    use Bound::{Keys, No, Prefixes, Slot};
    let entry = Mark::Entry;
    let mut kinds = vec![
        section(
            ".data",
            "volatile __u32 in_data = 1; volatile __u32 data_seen = 5;",
            "volatile __u32 extra_data = 1;",
        ),
        section(
            ".bss",
            "volatile __u32 in_bss; volatile __u32 bss_seen;",
            "volatile __u32 extra_bss;",
        ),
        section(
            ".data.x",
            "volatile __u32 in_data_x SEC(\".data.x\") = 1; volatile __u32 data_x_seen SEC(\".data.x\") = 5;",
            "volatile __u32 extra_data_x SEC(\".data.x\") = 1;",
        ),
        section(".rodata", "const volatile __u32 in_rodata = 1;", ""),
        kind("hash", "HASH", "0", SHORT, Keys, entry(NINE)),
        kind("hash_np", "HASH", "BPF_F_NO_PREALLOC", SHORT, Keys, entry(NINE)),
        kind("hash_zs", "HASH", "BPF_F_ZERO_SEED", SHORT, Keys, entry(NINE)),
        kind("pc_hash", "PERCPU_HASH", "0", SHORT, Keys, entry(NINE)),
        kind("lru", "LRU_HASH", "0", SHORT, Keys, entry(NINE)),
        kind("lru_nc", "LRU_HASH", "BPF_F_NO_COMMON_LRU", SHORT, Keys, entry(NINE)),
        kind("pc_lru", "LRU_PERCPU_HASH", "0", SHORT, Keys, entry(NINE)),
        kind("array", "ARRAY", "0", SLOTS, Slot, entry(ONE)),
        kind("array_mm", "ARRAY", "BPF_F_MMAPABLE", SLOTS, Slot, entry(ONE)),
        kind("array_ro", "ARRAY", "BPF_F_RDONLY_PROG", SLOTS, Slot, entry(ONE)),
        kind("array_in", "ARRAY", "BPF_F_INNER_MAP", SLOTS, Slot, entry(ONE)),
        kind("pc_array", "PERCPU_ARRAY", "0", SLOTS, Slot, entry(ONE)),
        kind("trie4", "LPM_TRIE", "BPF_F_NO_PREALLOC", TRIE4, Prefixes, entry(NET4)),
        kind("trie6", "LPM_TRIE", "BPF_F_NO_PREALLOC", TRIE6, Prefixes, entry(NET6)),
        kind("progs", "PROG_ARRAY", "0", SLOTS, No, Mark::Program(ZERO)),
        kind("dev", "DEVMAP", "0", SLOTS, No, Mark::Device(ZERO)),
        kind("dev_hash", "DEVMAP_HASH", "0", SLOTS, No, Mark::Device(THREE)),
        kind(
            "cpu",
            "CPUMAP",
            "0",
            "__uint(max_entries, ENTRIES / 8); __type(key, __u32); __type(value, __u32);",
            No,
            entry(ZERO),
        ),
        kind("xsk", "XSKMAP", "0", SLOTS, No, Mark::None),
        kind("queue", "QUEUE", "0", QUEUE, No, Mark::Push),
        kind("stack", "STACK", "0", QUEUE, No, Mark::Push),
        kind("bloom", "BLOOM_FILTER", "0", QUEUE, No, Mark::None),
        kind("ring", "RINGBUF", "0", RING, No, Mark::None),
        kind("user_ring", "USER_RINGBUF", "0", RING, No, Mark::None),
        kind(
            "perf",
            "PERF_EVENT_ARRAY",
            "0",
            "__uint(key_size, 4); __uint(value_size, 4);",
            No,
            Mark::None,
        ),
        kind(
            "perf_keep",
            "PERF_EVENT_ARRAY",
            "BPF_F_PRESERVE_ELEMS",
            "__uint(key_size, 4); __uint(value_size, 4);",
            No,
            Mark::None,
        ),
        kind(
            "traces",
            "STACK_TRACE",
            "0",
            "__uint(max_entries, ENTRIES); __uint(key_size, 4); __uint(value_size, 64);",
            No,
            Mark::None,
        ),
    ];
    let filled = |kind: Kind| Kind { filled: true, ..kind };
    kinds.push(filled(kind("jumps", "PROG_ARRAY", "0", "", No, Mark::Program(THREE))));
    for (inner, outer, map_type, shape, mark) in [
        ("in_array", "out_array", "ARRAY", SLOTS, entry(ONE)),
        ("in_hash", "out_hash", "HASH", SHORT, entry(NINE)),
        ("in_pc_hash", "out_pc_hash", "PERCPU_HASH", SHORT, entry(NINE)),
        ("in_lru", "out_lru", "LRU_HASH", SHORT, entry(NINE)),
        ("in_queue", "out_queue", "QUEUE", QUEUE, Mark::Push),
        ("in_ring", "out_ring", "RINGBUF", RING, Mark::None),
    ] {
        kinds.push(kind(inner, map_type, "0", shape, No, mark));
        kinds.push(filled(kind(outer, "ARRAY_OF_MAPS", "0", inner, No, Mark::Map(THREE))));
    }
    kinds.push(kind("outer_hash", "HASH_OF_MAPS", "0", "in_array", No, Mark::Map(NINE_LONG)));
    kinds.extend(kinds_for_other_hooks());
    kinds
}

/// Those that mean something to programs of other hooks only, and that an XDP program can have.
fn kinds_for_other_hooks() -> Vec<Kind> {
    use Bound::No;
    let mut kinds = Vec::new();
    for (name, map_type, owner) in [
        ("sk_local", "SK_STORAGE", Owner::Socket),
        ("inode_local", "INODE_STORAGE", Owner::File),
        ("task_local", "TASK_STORAGE", Owner::Process),
        ("cgrp_local", "CGRP_STORAGE", Owner::Cgroup),
    ] {
        let mark = Mark::Owner(owner);
        kinds.push(kind(name, map_type, "BPF_F_NO_PREALLOC", LOCAL, No, mark));
    }
    kinds.push(kind("cg_storage", "CGROUP_STORAGE", "0", CGROUP, No, Mark::None));
    kinds.push(kind("pc_cg_storage", "PERCPU_CGROUP_STORAGE", "0", CGROUP, No, Mark::None));
    kinds.push(kind("cgroups", "CGROUP_ARRAY", "0", SLOTS, No, Mark::None));
    kinds.push(kind("arena", "ARENA", "BPF_F_MMAPABLE", PAGES, No, Mark::None));
    kinds
}

const NINE_LONG: &[u8] = &[9, 0, 0, 0];

impl Kind {
    fn is_section(&self) -> bool {
        self.kind.is_empty()
    }

    /// The variable that has the setting, and the one that the program counts in.
    fn variables(&self) -> (String, String) {
        let name = self.name.trim_start_matches('.').replace('.', "_");
        (format!("in_{name}"), format!("{name}_seen"))
    }

    /// The map whose like a map of maps holds.
    fn inner(&self) -> Option<&'static str> {
        self.kind.ends_with("_OF_MAPS").then_some(self.shape)
    }

    /// Whether the object declares it otherwise when it is wide.
    fn has_shapes(&self) -> bool {
        !self.name.starts_with("perf") && self.name != ".rodata"
    }
}

/// Map types that are not in every system's headers.
const NEW_TYPES: &str = "#define BPF_MAP_TYPE_CGRP_STORAGE 32\n#define BPF_MAP_TYPE_ARENA 33\n";

/// The object with all kinds.
fn source(kinds: &[Kind], pinned: bool, wide: bool) -> String {
    let mut text = format!(
        "{NEW_TYPES}#define ENTRIES {}\n#define PIN {}\nint target(struct xdp_md *ctx);\n",
        if wide { 32 } else { 16 },
        if pinned { "__uint(pinning, LIBBPF_PIN_BY_NAME);" } else { "" }
    );
    let (mut uses, mut checks) = (String::new(), String::new());
    for (bit, kind) in kinds.iter().enumerate() {
        let Kind { name, kind: map_type, flags, shape, bound, .. } = kind;
        let (global, seen) = kind.variables();
        let seen_by_program = match bound {
            Bound::No => String::new(),
            Bound::Keys => format!(
                "{{ __u16 new = 443, old = 80; if (bpf_map_lookup_elem(&{name}, &new) && \
                 !bpf_map_lookup_elem(&{name}, &old)) mask |= 1u << {bit}; }}"
            ),
            Bound::Slot => format!(
                "{{ __u32 zero = 0, *v = bpf_map_lookup_elem(&{name}, &zero); \
                 if (v && *v == 200) mask |= 1u << {bit}; }}"
            ),
            Bound::Prefixes => {
                let (length, head) = if *name == "trie4" {
                    (32, "10, 0, 0, ")
                } else {
                    (128, "0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ")
                };
                let size = length / 8;
                format!(
                    "{{ struct {{ __u32 length; __u8 bytes[{size}]; }} new = {{ {length}, {{ {head}2 }} }}, \
                     old = {{ {length}, {{ {head}1 }} }}; if (bpf_map_lookup_elem(&{name}, &new) && \
                     !bpf_map_lookup_elem(&{name}, &old)) mask |= 1u << {bit}; }}"
                )
            }
            Bound::Global(..) if *name == ".rodata" => {
                format!("if ({global} == 200) mask |= 1u << {bit};")
            }
            Bound::Global(..) => format!("{seen}++; if ({global} == 200) mask |= 1u << {bit};"),
        };
        // Each in a function that is verified once.
        if !seen_by_program.is_empty() {
            let _ = writeln!(
                checks,
                "__attribute__((noinline)) int check_{bit}(void) \
                 {{ __u32 mask = 0; {seen_by_program} return mask != 0; }}"
            );
            let _ = writeln!(uses, "\tmask |= (check_{bit}() & 1u) << {bit};");
        }
        match (bound, *name) {
            (Bound::Global(declared, more), _) => {
                let more = if wide { more } else { "" };
                let _ = writeln!(text, "{declared} {more}");
                if !more.is_empty() {
                    let _ = writeln!(uses, "\textra_{}++;", global.trim_start_matches("in_"));
                }
            }
            (_, "jumps") => {
                let _ = writeln!(
                    text,
                    "struct {{ __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, ENTRIES); __uint(key_size, 4); PIN \
                     __array(values, int (void *)); }} jumps SEC(\".maps\") = {{ .values = {{ [0] = (void *)&target }} }};"
                );
            }
            (_, inner) if inner.starts_with("in_") => {
                let _ = writeln!(
                    text,
                    "struct {name} {{ __uint(type, BPF_MAP_TYPE_{map_type}); {shape} }} {name} SEC(\".maps\");"
                );
            }
            _ if kind.inner().is_some() => {
                let inner = shape;
                let values = if kind.filled {
                    format!("= {{ .values = {{ [0] = &{inner} }} }}")
                } else {
                    String::new()
                };
                let _ = writeln!(
                    text,
                    "struct {{ __uint(type, BPF_MAP_TYPE_{map_type}); __uint(max_entries, 8); __type(key, __u32); PIN \
                     __array(values, struct {inner}); }} {name} SEC(\".maps\") {values};"
                );
            }
            _ => {
                let _ = writeln!(
                    text,
                    "struct {{ __uint(type, BPF_MAP_TYPE_{map_type}); __uint(map_flags, {flags}); PIN {shape} }} {name} SEC(\".maps\");"
                );
            }
        }
        if !kind.is_section() {
            let _ = writeln!(uses, "\tasm volatile(\"\" :: \"r\"(&{name}));");
        }
    }
    text + &checks
        + "SEC(\"xdp\") int target(struct xdp_md *ctx) { return XDP_PASS; }\n"
        + "SEC(\"xdp\") int f(struct xdp_md *ctx)\n{\n\t__u32 mask = 0;\n\n"
        + &uses
        + "\t/* No verdict: it ends the chain, and is what the packet returns. */\n"
        + "\treturn mask ? (int)(mask | 0x40000000u) : 64;\n}\n"
}

/// Where a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// The member's own, of a package that keeps nothing over versions.
    Own,
    /// The member's own, `carry_over: true`.
    Carried,
    /// `shared: interface`.
    Interface,
    /// `shared: host`.
    Host,
    /// `LIBBPF_PIN_BY_NAME`.
    Pinned,
}

/// What changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    /// A setting of another program of the chain.
    Other,
    /// The order of the chain.
    Order,
    /// The settings of the map.
    Setting,
    /// The version, with the same maps.
    Version,
    /// The version, with maps of another shape.
    Shape,
}

const PLACES: [Place; 5] =
    [Place::Own, Place::Carried, Place::Interface, Place::Host, Place::Pinned];
const CHANGES: [Change; 5] =
    [Change::Other, Change::Order, Change::Setting, Change::Version, Change::Shape];

/// What became of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Became {
    /// The same map.
    Kept,
    /// Another map with what was in it.
    Copied,
    /// A new map.
    New,
    /// There is no such place for it.
    Nowhere,
}

impl Became {
    fn word(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Copied => "copied",
            Self::New => "new",
            Self::Nowhere => "–",
        }
    }
}

/// What is promised.
fn promised(kind: &Kind, place: Place, change: Change) -> Became {
    let shared = !matches!(place, Place::Own | Place::Carried);
    if place == Place::Pinned && kind.is_section() {
        return Became::Nowhere;
    }
    if kind.name == ".rodata" {
        return Became::New;
    }
    // Arrays of functions are each version's own. So are maps of maps, where nobody shares them.
    let own_references = kind.filled && (kind.name == "jumps" || !shared);
    let version = change == Change::Version || change == Change::Shape && !kind.has_shapes();
    match change {
        Change::Shape if kind.has_shapes() => Became::New,
        _ if own_references && version => Became::New,
        _ if own_references => Became::Copied,
        _ if version && place == Place::Own => Became::New,
        Change::Setting if kind.bound != Bound::No => Became::Copied,
        _ => Became::Kept,
    }
}

/// A host with the chain of one case.
struct Case {
    bench: Bench,
    kinds: Vec<Kind>,
    place: Place,
    version: u32,
    wide: bool,
    changed: bool,
    other: u32,
    first: bool,
}

impl Case {
    fn new(kinds: &[Kind], place: Place) -> Self {
        let mut bench = Bench::new();
        let source = "const volatile __u32 number;\n\
                      SEC(\"xdp\") int other(struct xdp_md *ctx)\n\
                      { return number == 77 ? XDP_DROP : XDP_PASS; }";
        let config = "config:\n- { name: number, type: u32, description: d, default: 0, bind: { global: number } }\n";
        bench.publish("other", "1.0.0", "other", config, source);
        let mut case = Self {
            bench,
            kinds: kinds.to_vec(),
            place,
            version: 0,
            wide: false,
            changed: false,
            other: 0,
            first: true,
        };
        case.publish();
        case
    }

    fn publish(&mut self) {
        let mut more = "config:\n".to_owned();
        let parameter = |name: &str, kind: &str, bind: &str| {
            format!("- {{ name: {name}, type: {kind}, description: d, bind: {{ {bind} }} }}\n")
        };
        for kind in &self.kinds {
            let name = kind.name;
            more += &match kind.bound {
                Bound::Keys => parameter(name, "ports", &format!("keys: {name}"))
                    .replace("description: d", "description: d, max: 4"),
                Bound::Slot => {
                    parameter(name, "u32", &format!("map: {name}, slot: 0, value_size: 4"))
                }
                Bound::Prefixes if name == "trie4" => {
                    parameter("tries", "prefixes", "lpm_v4: trie4, lpm_v6: trie6")
                        .replace("description: d", "description: d, max: 4")
                }
                Bound::Global(..) => {
                    let (variable, _) = kind.variables();
                    parameter(&variable, "u32", &format!("global: {variable}"))
                }
                Bound::No | Bound::Prefixes => String::new(),
            };
        }
        let how = match self.place {
            Place::Own | Place::Pinned => None,
            Place::Carried => Some("carry_over: true"),
            Place::Interface => Some("shared: interface"),
            Place::Host => Some("shared: host"),
        };
        if let Some(how) = how {
            more += "maps:\n";
            for kind in &self.kinds {
                let _ = writeln!(more, "- {{ name: {}, {how} }}", kind.name);
            }
        }
        let source = source(&self.kinds, self.place == Place::Pinned, self.wide);
        let version = format!("1.{}.0", self.version);
        self.bench.publish("all", &version, "f", &more, &source);
    }

    fn apply(&self) {
        let mut config = serde_json::Map::new();
        for kind in &self.kinds {
            let number = if self.changed { 200 } else { 7 };
            let (name, value) = match kind.bound {
                Bound::Keys => (kind.name.to_owned(), json!([if self.changed { 443 } else { 80 }])),
                Bound::Slot => (kind.name.to_owned(), json!(number)),
                Bound::Prefixes => {
                    let last = if self.changed { 2 } else { 1 };
                    let both = json!([format!("10.0.0.{last}"), format!("2001:db8::{last}")]);
                    ("tries".to_owned(), both)
                }
                Bound::Global(..) => (kind.variables().0, json!(number)),
                Bound::No => continue,
            };
            config.insert(name, value);
        }
        let priority = if self.first { 1 } else { 200 };
        self.bench.applied(json!([
            { "name": "all", "package": "all", "config": config },
            { "name": "other", "package": "other", "priority": priority,
              "config": { "number": self.other } },
        ]));
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Other => self.other += 1,
            Change::Order => self.first = !self.first,
            Change::Setting => self.changed = !self.changed,
            Change::Version => self.version += 1,
            Change::Shape => {
                self.version += 1;
                self.wide = !self.wide;
            }
        }
        if matches!(change, Change::Version | Change::Shape) {
            self.publish();
        }
        self.apply();
    }

    fn map(&self, kind: &Kind) -> Map {
        self.bench.map("all", kind.name)
    }

    /// Puts something into every map that nobody's settings put there.
    fn mark(&self) {
        let link = self.bench.host.exec(&["ip", "-o", "link", "show", HOST_LINK]);
        let device: u32 = link.split(':').next().unwrap().trim().parse().unwrap();
        let program = some_program();
        for kind in self.kinds.iter().filter(|kind| self.is_there(kind)) {
            let map = self.map(kind);
            let number = |number: i32| number.to_ne_bytes().to_vec();
            let (key, value) = match kind.mark {
                Mark::None | Mark::Variable => continue,
                Mark::Entry(key) => (key, vec![7; map.info().value_size as usize]),
                Mark::Push => (&[][..], vec![7; 4]),
                Mark::Program(key) => (key, number(program.as_raw_fd())),
                Mark::Device(key) => (key, device.to_ne_bytes().to_vec()),
                Mark::Owner(owner) => {
                    let key = owner.descriptor().to_ne_bytes();
                    let value = vec![7; map.info().value_size as usize];
                    map.update(&key, &value, 0).unwrap_or_else(|e| panic!("{}: {e}", kind.name));
                    continue;
                }
                Mark::Map(key) => {
                    let inner = self.bench.map("all", kind.inner().unwrap());
                    let inner = another(&inner);
                    let value = number(inner.as_raw_fd());
                    map.update(key, &value, 0).unwrap_or_else(|e| panic!("{}: {e}", kind.name));
                    continue;
                }
            };
            // As many as a CPU map's queue may be.
            let value = if kind.name == "cpu" { vec![64, 0, 0, 0] } else { value };
            self.bench
                .host
                .here(|| map.update(key, &value, 0))
                .unwrap_or_else(|error| panic!("{}: {error}", kind.name));
        }
        self.bench.verdict();
    }

    fn is_there(&self, kind: &Kind) -> bool {
        self.place != Place::Pinned || !kind.is_section()
    }

    /// Whether a map has what was put there.
    fn is_marked(kind: &Kind, map: &Map) -> Option<bool> {
        match kind.mark {
            Mark::None => None,
            Mark::Entry(key) => {
                let value = map.lookup(key).unwrap();
                Some(value.is_some_and(|value| value.iter().any(|byte| *byte == 7 || *byte == 64)))
            }
            Mark::Owner(owner) => {
                Some(map.lookup(&owner.descriptor().to_ne_bytes()).unwrap().is_some())
            }
            Mark::Push => Some(map.lookup(&[]).unwrap().is_some()),
            Mark::Program(key) | Mark::Map(key) | Mark::Device(key) => {
                Some(map.lookup(key).unwrap().is_some_and(|value| value != [0; 4]))
            }
            Mark::Variable if kind.name == ".rodata" => Some(false),
            Mark::Variable => {
                // More than what it starts with, before the next packet.
                let words = map.lookup(&[0; 4]).unwrap().unwrap();
                let words = words.as_chunks::<4>().0.iter().map(|w| u32::from_ne_bytes(*w));
                let most = words.filter(|word| ![7, 200].contains(word)).max().unwrap();
                Some(most > if kind.name == ".bss" { 0 } else { 5 })
            }
        }
    }

    /// What became of each map over a change, and that all is as it is to be.
    fn judge(&self, before: &BTreeMap<&str, u32>, place: Place, change: Change) -> Vec<Became> {
        let listed = bpftool(&["map", "list"]);
        let context = format!("{place:?}, {change:?}");
        let mut all = Vec::new();
        for kind in &self.kinds {
            if !self.is_there(kind) {
                all.push(Became::Nowhere);
                continue;
            }
            let map = self.map(kind);
            let info = map.info();
            let same = before.get(kind.name) == Some(&info.id);
            all.push(match (same, Self::is_marked(kind, &map)) {
                (true, Some(true) | None) => Became::Kept,
                (false, Some(true)) => Became::Copied,
                (false, Some(false) | None) => Became::New,
                (true, Some(false)) => panic!("{context}: {} lost what was in it", kind.name),
            });
            // The shape, as the declaration has it.
            let listed = listed.as_array().unwrap().iter().find(|map| map["id"] == info.id);
            let listed = listed.unwrap_or_else(|| panic!("{context}: no {}", kind.name));
            if kind.shape.starts_with("__uint(max_entries, ENTRIES); ") {
                let entries = if self.wide { 32 } else { 16 };
                assert_eq!(listed["max_entries"], entries, "{context}: {}", kind.name);
            }
            // The settings, as foreign eyes see them.
            if matches!(kind.bound, Bound::Keys) && change == Change::Setting {
                let dump = bpftool(&["map", "dump", "id", &info.id.to_string()]).to_string();
                let key = |port: u16| {
                    let [low, high] = port.to_le_bytes();
                    format!("[\"{low:#04x}\",\"{high:#04x}\"]")
                };
                let (set, unset) = if self.changed { (443, 80) } else { (80, 443) };
                assert!(dump.contains(&key(set)), "{context}: {}: {dump}", kind.name);
                assert!(!dump.contains(&key(unset)), "{context}: {}: {dump}", kind.name);
            }
            // What the object fills it with is this version's.
            if let Some(inner) = kind.inner().filter(|_| kind.filled) {
                let held = map.lookup(&[0; 4]).unwrap().unwrap();
                let inner = self.bench.map("all", inner).info().id;
                assert_eq!(held, inner.to_ne_bytes(), "{context}");
            }
        }
        self.feel(&context);
        all
    }

    /// Sends a packet, which feels the settings of every map and variable.
    fn feel(&self, context: &str) {
        let mask = self
            .kinds
            .iter()
            .enumerate()
            .filter(|(_, kind)| kind.bound != Bound::No)
            .fold(0_u32, |mask, (bit, _)| mask | 1 << bit);
        let expected = if self.changed { mask | 0x4000_0000 } else { 64 };
        let verdict = self.bench.verdict();
        assert_eq!(verdict, expected, "{context}: {verdict:#x} is not {expected:#x}");
    }

    fn ids(&self) -> BTreeMap<&'static str, u32> {
        let there = self.kinds.iter().filter(|kind| self.is_there(kind));
        there.map(|kind| (kind.name, self.map(kind).info().id)).collect()
    }
}

fn some_program() -> OwnedFd {
    let code = [[0xb7, 0, 0, 0, 1, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]].concat();
    let load =
        sys::ProgLoad { expected_attach_type: 37, ..sys::ProgLoad::new(6, &code, "GPL", "some") };
    sys::prog_load(&load).map_err(|rejected| format!("{rejected:?}")).unwrap()
}

/// A map of the same shape.
fn another(map: &Map) -> OwnedFd {
    let info = map.info();
    sys::map_create(&MapCreate {
        map_type: info.map_type,
        key_size: info.key_size,
        value_size: info.value_size,
        max_entries: info.max_entries,
        flags: info.flags,
        name: "another",
        ..MapCreate::default()
    })
    .unwrap()
}

fn bpftool(arguments: &[&str]) -> Value {
    let output = Command::new("bpftool").arg("-j").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Makes every change of maps in one place.
fn changes_in(kinds: &[Kind], place: Place, full: bool) -> Vec<(Change, Vec<Became>)> {
    let mut fresh = Case::new(kinds, place);
    fresh.changed = true;
    fresh.apply();
    fresh.feel(&format!("{place:?}, fresh"));
    let mut seen = Vec::new();
    for change in CHANGES {
        let firsts = if full { CHANGES.map(Some).to_vec() } else { Vec::new() };
        let mut last = Vec::new();
        for earlier in [None].into_iter().chain(firsts) {
            let mut case = Case::new(kinds, place);
            case.apply();
            if let Some(earlier) = earlier {
                case.change(earlier);
            }
            case.mark();
            let before = case.ids();
            case.change(change);
            let became = case.judge(&before, place, change);
            for (kind, became) in kinds.iter().zip(&became) {
                let promised = promised(kind, place, change);
                let name = kind.name;
                assert_eq!(*became, promised, "{name}, {place:?}, {change:?} after {earlier:?}");
            }
            last = became;
        }
        seen.push((change, last));
    }
    seen
}

#[test]
fn every_kind_of_map_over_every_change() {
    let kinds = kinds();
    // The bits of what packets feel.
    assert!(kinds.iter().rposition(|kind| kind.bound != Bound::No).unwrap() < 30);
    let full = std::env::var_os("CANOPY_TEST_FULL").is_some();
    let seen = thread::scope(|scope| {
        let places = PLACES.map(|place| {
            let kinds = &kinds;
            scope.spawn(move || changes_in(kinds, place, full))
        });
        let places = places.into_iter().zip(PLACES);
        places
            .flat_map(|(thread, place)| {
                let seen = thread.join().unwrap_or_else(|_| panic!("{place:?}"));
                seen.into_iter().map(move |(change, became)| ((place, change), became))
            })
            .collect()
    });
    compare_table(&table(&kinds, &seen));
}

fn table(kinds: &[Kind], seen: &BTreeMap<(Place, Change), Vec<Became>>) -> String {
    let mut text = "# Maps over changes\n\n\
        What becomes of the contents of a program's maps when its chain changes. Written by the test\n\
        `every_kind_of_map_over_every_change` (`tests/kernel/tests/map_changes.rs`) from what it sees in\n\
        the kernel; do not edit. In every case the settings of the document are in effect afterwards.\n\n\
        - **kept**: the same map.\n\
        - **copied**: a new map with the contents of the one before, the settings laid over them.\n\
        - **new**: a new map with what the object and the settings say.\n\n\
        A place is what the manifest or the object says of the map: nothing (own), `carry_over: true`,\n\
        `shared: interface`, `shared: host`, `LIBBPF_PIN_BY_NAME`. A map that settings fill, or that is\n\
        filled by its object, is marked.\n\n\
        A setting that the program itself writes (a variable, a part of a value, an entry that it removes)\n\
        is where the program starts. It is in effect when it is set first and whenever the document\n\
        changes it; any other change of the chain, and an apply of the same document, leave it as the\n\
        program has it. Everything else that somebody wrote over is put back by the next apply, in a map\n\
        that other chains use only once the change is attached.\n\n\
        In a copied map what is the kernel's own starts anew: locks, timers, work queues, pointers\n\
        (`__kptr`). The answer to the apply names map and field. Lists and trees cannot be copied at all:\n\
        such a map starts empty, and the answer says so.\n"
        .to_owned();
    for change in CHANGES {
        let title = match change {
            Change::Other => "A setting of another program of the chain changes",
            Change::Order => "The order of the chain changes",
            Change::Setting => "The settings change",
            Change::Version => "The version changes, the maps are declared as before",
            Change::Shape => "The version changes, the maps are declared with another shape",
        };
        let _ = write!(
            text,
            "\n## {title}\n\n| map | own | carried over | shared: interface | shared: host | pinned by name |\n|---|---|---|---|---|---|\n"
        );
        for (at, kind) in kinds.iter().enumerate() {
            let what = match (kind.is_section(), kind.flags) {
                (true, _) => format!("`{}`", kind.name),
                (false, "0") => match kind.inner() {
                    Some(inner) => {
                        let inner = kinds.iter().find(|kind| kind.name == inner).unwrap();
                        let (outer, inner) = (kind.kind.to_lowercase(), inner.kind.to_lowercase());
                        format!("{outer} of {inner}")
                    }
                    None => kind.kind.to_lowercase(),
                },
                (false, flags) => format!("{}, `{flags}`", kind.kind.to_lowercase()),
            };
            let mark = match (kind.bound, kind.filled, kind.name) {
                (_, true, _) => " (filled by its object)",
                (_, _, name) if name.starts_with("in_") => " (in a map of maps)",
                (_, _, "trie4") => " for IPv4 (settings)",
                (_, _, "trie6") => " for IPv6 (settings)",
                (Bound::No, ..) => "",
                _ => " (settings)",
            };
            let _ = write!(text, "| {what}{mark} |");
            for place in PLACES {
                let _ = write!(text, " {} |", seen[&(place, change)][at].word());
            }
            text.push('\n');
        }
    }
    text
}

/// That the table in the documentation is this one.
fn compare_table(table: &str) {
    let path = repository().join("docs/reference/maps.md");
    if std::env::var_os("CANOPY_WRITE_DOCS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, table).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == table,
        "{} is not what was seen; write it anew with CANOPY_WRITE_DOCS=1",
        path.display()
    );
}
