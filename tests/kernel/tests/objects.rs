//! What stock libbpf makes of an object alone, a chain makes of it in every place: the shapes in
//! `corpus/objects`, each loaded by `bpftool prog loadall` and by the loader's code, alone and as the
//! first, a middle, the last and both members of a chain, and run on a packet.
//!
//! `CANOPY_WRITE_DOCS=1` writes the table in `docs/reference/objects.md`; else it is compared where the
//! tools and the kernel are those it was written with.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "test code: a failure is a panic"
)]

use canopy_api::Hook;
use canopy_kernel::{KernelError, Member};
use canopy_kernel_aya::sys::{self, TestRun};
use canopy_kernel_tests::chain::{Chains, member, object, object_with, packet};
use canopy_test_support::{bpffs::BpffsDir, repository};
use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    thread,
};

/// What is another answer than libbpf's, and why.
const DIFFERENCES: [(&str, &str); 7] = [
    (
        "arena",
        "libbpf before 1.4 does not know arenas; the kernel takes one in a chain, so not twice",
    ),
    ("data_sections", "libbpf before 1.3 takes no `.bss.*`"),
    ("kfunc_flavour", "libbpf before 1.4 does not find functions under names with a flavour"),
    ("map_extra_long", "libbpf before 1.5 does not know `__ulong`"),
    ("maps_iproute", "libbpf 1.0 and newer refuse maps of before BTF"),
    ("maps_old", "libbpf 1.0 and newer refuse maps of before BTF"),
    ("sections", "libbpf takes functions that are called in `.text` only"),
];

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// It was loaded, and returned this for a packet.
    Returns(u32),
    /// It was refused, for this.
    Refused(String),
}

impl Outcome {
    fn word(&self) -> &'static str {
        match self {
            Self::Returns(_) => "runs",
            Self::Refused(_) => "refused",
        }
    }
}

/// One way in which objects differ.
struct Shape {
    name: String,
    /// In words, from the source.
    what: String,
    object: Arc<[u8]>,
}

/// The places of a shape in a chain.
const PLACES: [&str; 5] = ["alone", "first", "middle", "last", "twice"];

fn shape(name: &str) -> Arc<[u8]> {
    object(&format!("objects/{name}"))
}

/// Every shape, by name.
fn shapes() -> Vec<Shape> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/objects");
    let mut names: Vec<String> = fs::read_dir(&dir)
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.strip_suffix(".bpf.c").map(str::to_owned)
        })
        .filter(|name| name != "filler" && !name.starts_with("linked_"))
        .collect();
    names.sort();
    let mut shapes: Vec<Shape> = names
        .into_iter()
        .map(|name| {
            let source = fs::read_to_string(dir.join(format!("{name}.bpf.c"))).unwrap();
            let what = source.lines().nth(1).unwrap().trim_matches(['/', '*', ' ']).to_owned();
            let mut object = shape(&name);
            if name == "core_matches" {
                object = asks_for_matches(&object);
            }
            Shape { name, what, object }
        })
        .collect();
    shapes.push(Shape {
        name: "linked".to_owned(),
        what: "Two objects that `bpftool gen object` linked.".to_owned(),
        object: linked(),
    });
    shapes.push(Shape {
        name: "no_types".to_owned(),
        what: "An object without type information.".to_owned(),
        object: object_with("objects/plain", &["-g0"]),
    });
    shapes
}

/// The object with every question whether a type exists turned into whether it matches: the compilers
/// of before LLVM 15 do not ask that.
fn asks_for_matches(object: &Arc<[u8]>) -> Arc<[u8]> {
    let word = |at: usize| u32::from_ne_bytes(object[at..at + 4].try_into().unwrap());
    let ext = (0..object.len() / 4)
        .map(|at| at * 4)
        .filter(|at| object[*at..].starts_with(&[0x9f, 0xeb, 1, 0]))
        // .BTF's header has 24 bytes, .BTF.ext's 32.
        .find(|at| word(at + 4) == 32)
        .unwrap();
    let (start, length) = (ext + 32 + word(ext + 24) as usize, word(ext + 28) as usize);
    let mut changed = object.to_vec();
    // The size of a record; then for each section its name, how many, and the records.
    let mut at = start + 4;
    let mut questions = 0;
    while at < start + length {
        let count = word(at + 4) as usize;
        for record in 0..count {
            let kind = at + 8 + record * 16 + 12;
            if word(kind) == 8 {
                changed[kind..kind + 4].copy_from_slice(&12_u32.to_ne_bytes());
                questions += 1;
            }
        }
        at += 8 + count * 16;
    }
    assert_eq!(questions, 4);
    changed.into()
}

fn linked() -> Arc<[u8]> {
    let dir = tempfile::tempdir().unwrap();
    let mut bpftool = Command::new("bpftool");
    bpftool.args(["gen", "object"]).arg(dir.path().join("linked.o"));
    for name in ["linked_first", "linked_second"] {
        let path = dir.path().join(format!("{name}.o"));
        fs::write(&path, shape(name)).unwrap();
        bpftool.arg(path);
    }
    let output = bpftool.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::read(dir.path().join("linked.o")).unwrap().into()
}

/// What libbpf makes of an object.
fn by_libbpf(bpffs: &BpffsDir, shape: &Shape) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("object.o");
    fs::write(&file, &shape.object).unwrap();
    let (pin, maps) = (bpffs.path().join(&shape.name), bpffs.path().join("maps").join(&shape.name));
    let mut bpftool = Command::new("bpftool");
    bpftool.args(["prog", "loadall"]).arg(&file).arg(&pin);
    // Timers and program arrays work only as long as a process or a pin has their map.
    if ["timer", "tail_call", "tail_call_list"].contains(&shape.name.as_str()) {
        bpftool.arg("pinmaps").arg(&maps);
    }
    let output = bpftool.output().unwrap();
    if !output.status.success() {
        return Outcome::Refused(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let prog = sys::obj_get(&pin.join("shape")).unwrap();
    let data = packet(&[]);
    loop {
        match sys::prog_test_run(&prog, &TestRun { data: &data, repeat: 1, ..TestRun::default() }) {
            // A child that ended, in another thread.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            run => return Outcome::Returns(run.unwrap().retval),
        }
    }
}

/// What a chain makes of an object that is at this place in it.
fn in_chain(chains: &Chains, shape: &Shape, place: &str, generation: u64, lists: bool) -> Outcome {
    let this = |name: &str| member(name, Hook::Xdp, &shape.object, "shape");
    let filler = || member("filler", Hook::Xdp, &self::shape("filler"), "shape");
    // One with lists of structs named as others', where the kernel has lists.
    let other = if lists { "list_other_layout" } else { "plain" };
    let other = || member("other", Hook::Xdp, &self::shape(other), "shape");
    let members: Vec<Member> = match place {
        "alone" => vec![this("this")],
        "first" => vec![this("this"), filler(), other()],
        "middle" => vec![filler(), this("this"), other()],
        "last" => vec![other(), filler(), this("this")],
        _ => vec![this("one"), filler(), this("two")],
    };
    match chains.prepare(Hook::Xdp, generation, members) {
        Ok(_) => Outcome::Returns(chains.run(Hook::Xdp, generation, &packet(&[])).retval),
        Err(error) => Outcome::Refused(told(&error)),
    }
}

/// All that an error tells.
fn told(error: &KernelError) -> String {
    match error {
        KernelError::Refused { member, reason, remedy, log } => {
            let log = log.as_deref().unwrap_or_default();
            format!("{member:?}: {reason}\nremedy: {remedy}\n{log}")
        }
        error => format!("{error}: {:?}", std::error::Error::source(error)),
    }
}

/// A shape with what libbpf made of it, and each place.
type Row = (Shape, Outcome, Vec<Outcome>);

fn rows() -> Vec<Row> {
    let bpffs = BpffsDir::new().unwrap();
    fs::create_dir(bpffs.path().join("maps")).unwrap();
    let lists =
        Shape { name: "lists".to_owned(), what: String::new(), object: shape("list_other_layout") };
    let lists = matches!(by_libbpf(&bpffs, &lists), Outcome::Returns(_));
    let mut waiting: Vec<Shape> = shapes();
    waiting.reverse();
    let (waiting, done) = (Mutex::new(waiting), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let chains = Chains::new();
                let mut generation = 0;
                loop {
                    let Some(shape) = waiting.lock().unwrap().pop() else { break };
                    let libbpf = by_libbpf(&bpffs, &shape);
                    let places = PLACES.map(|place| {
                        generation += 1;
                        in_chain(&chains, &shape, place, generation, lists)
                    });
                    done.lock().unwrap().push((shape, libbpf, places.to_vec()));
                }
            });
        }
    });
    let mut rows = done.into_inner().unwrap();
    rows.sort_by(|(a, ..), (b, ..)| a.name.cmp(&b.name));
    rows
}

/// Whether two outcomes are the same but for the words of a refusal.
fn alike(one: &Outcome, other: &Outcome) -> bool {
    match (one, other) {
        (Outcome::Returns(one), Outcome::Returns(other)) => one == other,
        (one, other) => one.word() == other.word(),
    }
}

#[test]
fn objects_load_and_behave_in_chains_as_by_libbpf() {
    let rows = rows();
    assert!(rows.len() >= 40, "{} shapes", rows.len());
    let mut wrong = String::new();
    for (shape, libbpf, places) in &rows {
        // In a chain an object is what it is alone, always.
        let alone = &places[0];
        for (place, outcome) in PLACES.iter().zip(places) {
            // Two maps of one type are one too many: the kernel takes one arena in a program.
            let arenas = shape.name == "arena" && *place == "twice";
            if !alike(alone, outcome) && !arenas {
                let _ = writeln!(wrong, "{} {place}: {outcome:?}, alone {alone:?}", shape.name);
            }
        }
        let same = alike(libbpf, alone);
        let explained = DIFFERENCES.iter().any(|(name, _)| *name == shape.name);
        // Where libbpf refuses and we do not there is a reason; the other way there is none.
        let excused = explained && matches!(alone, Outcome::Returns(_));
        if !same && !excused {
            let _ = writeln!(wrong, "{}: libbpf {libbpf:?}, here {alone:?}", shape.name);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    check_table(&table(&rows));
}

/// The table of shapes in the documentation.
fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "<!-- Written by `CANOPY_WRITE_DOCS=1 cargo test -p canopy-kernel-tests --test objects`. -->\n\
         # Objects in chains\n\n\
         How objects differ, what stock libbpf makes of each (`bpftool prog loadall`, {}), and what a\n\
         chain makes of it: alone, as the first, a middle and the last of three members, and twice.\n\
         \"runs\" is: it loads, and returns for a packet what it returns when libbpf loaded it.\n\
         The sources are in `tests/kernel/corpus/objects`.\n\n\
         | Shape | What is in it | libbpf | Chain, in every place | Why not the same |\n\
         |---|---|---|---|---|\n",
        versions()
    );
    for (shape, libbpf, places) in rows {
        let same = alike(libbpf, &places[0]);
        let why = DIFFERENCES.iter().find(|(name, _)| *name == shape.name && !same);
        let (libbpf, ours) = (libbpf.word(), places[0].word());
        let why = why.map_or("", |(_, why)| why);
        let _ = writeln!(text, "| `{}` | {} | {libbpf} | {ours} | {why} |", shape.name, shape.what);
    }
    text
}

/// The versions that the table depends on.
fn versions() -> String {
    let output = Command::new("bpftool").arg("version").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let libbpf = text.lines().find_map(|line| line.strip_prefix("using ")).unwrap_or("libbpf");
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let series: Vec<&str> = release.split('.').take(2).collect();
    format!("{libbpf}, Linux {}", series.join("."))
}

fn check_table(table: &str) {
    let path = repository().join("docs/reference/objects.md");
    if std::env::var_os("CANOPY_WRITE_DOCS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, table).unwrap();
        return;
    }
    let written = fs::read_to_string(&path).unwrap();
    if written.contains(&versions()) {
        assert_eq!(written, table, "write {} anew: CANOPY_WRITE_DOCS=1", path.display());
    } else {
        println!("{} was written with other versions, and is not compared", path.display());
    }
}

/// The refusal of a shape.
fn refusal(name: &str) -> String {
    let chains = Chains::new();
    let members = vec![member("m", Hook::Xdp, &shape(name), "shape")];
    let error = chains.prepare(Hook::Xdp, 1, members).unwrap_err();
    assert!(chains.paths().iter().all(|path| !path.ends_with("prog")), "{:?}", chains.paths());
    told(&error)
}

#[test]
fn refusals_name_what_is_missing_and_what_to_do() {
    for (shape, names) in [
        (
            "core_reached",
            &["field \"canopy_no_such_field\"", "struct net_device", "bpf_core_field_exists"][..],
        ),
        ("core_enum_reached", &["value \"BPF_MAP_TYPE_CANOPY___x\"", "enum bpf_map_type"]),
        ("kconfig_missing", &["CONFIG_CANOPY_NO_SUCH_OPTION", "__weak"]),
        ("kconfig_wrong", &["CONFIG_BPF_SYSCALL", "its value y", "bool"]),
        ("kconfig_struct", &["CONFIG_HZ", "type"]),
        ("ksym_missing", &["canopy_no_such_symbol", "/proc/kallsyms"]),
        ("kfunc_missing", &["canopy_no_such_function", "__weak"]),
        ("undefined", &["nobody_defines_this", "defined neither in the object nor", "link"]),
        ("rust_panic", &["panic_bounds_check", "the program can panic there"]),
        ("map_pinning", &["values", "\"pinning\" is 2"]),
        ("core_resized_signed", &["struct net_device", "another size"]),
        ("kconfig_range", &["CONFIG_HZ", "does not fit 1 bytes"]),
        ("kconfig_unknown", &["CANOPY_NO_OPTION", "CONFIG_"]),
        ("map_attribute", &["values", "\"map_flag\" is no attribute"]),
        ("map_sizes_differ", &["values", "contradicts"]),
    ] {
        let refusal = refusal(shape);
        for name in names {
            assert!(refusal.contains(name), "{shape}: no {name:?} in {refusal}");
        }
    }
}

#[test]
fn addresses_in_data_are_told_of() {
    let chains = Chains::new();
    let members = vec![member("m", Hook::Xdp, &shape("data_pointers"), "shape")];
    let prepared = chains.load(Hook::Xdp, 1, members);
    let notes = prepared.notes.join("\n");
    assert!(notes.contains("2 addresses in section \".data.table\""), "{notes}");
}

#[test]
fn lists_are_kept_while_the_types_of_the_chain_are_the_same() {
    let chains = Chains::new();
    let list = || {
        let mut list = member("list", Hook::Xdp, &shape("list_map"), "shape");
        list.carry = canopy_kernel::Carry::AllBut(Vec::new());
        list
    };
    let filler = || member("filler", Hook::Xdp, &shape("filler"), "shape");
    let map = |generation| chains.map(Hook::Xdp, generation, "list", "holders").info().id;
    let verdict = |generation| chains.run(Hook::Xdp, generation, &packet(&[])).retval;
    chains.load(Hook::Xdp, 1, vec![filler(), list()]);
    chains.load(Hook::Xdp, 2, vec![filler(), list()]);
    assert_eq!((map(2), verdict(2)), (map(1), 2));

    // Its objects are of types of a chain that is no more: the kernel would take no other.
    let prepared = chains.load(Hook::Xdp, 3, vec![list(), filler()]);
    assert_ne!(map(3), map(1));
    assert!(prepared.notes.iter().any(|note| note.contains("\"holders\" starts empty")));
    assert_eq!(verdict(3), 2);
}
