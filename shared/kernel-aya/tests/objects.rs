//! Whatever bytes the reader of objects is given, it answers: no panic, and no more memory and time than
//! their length bounds. The kept corpus of the fuzz target goes through what the fuzzer does.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests are tests"
)]

#[path = "../fuzz/bodies.rs"]
mod bodies;

use canopy_kernel_aya::read_object;
use canopy_test_support::{compile, repository};
use proptest::{collection::vec, prelude::*, sample::Index as Place};
use std::{
    fs,
    path::Path,
    sync::LazyLock,
    time::{Duration, Instant},
};

/// Objects with one of each thing that is read: maps of every kind, data, CO-RE, calls, kfuncs,
/// configuration.
static GOOD: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let corpus = repository().join("tests/kernel/corpus");
    let names =
        ["core", "every_map", "functions", "kconfig", "kfuncs", "legacy_maps", "map_in_map"];
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("object.o");
    names
        .iter()
        .map(|name| {
            compile(&corpus.join(format!("{name}.bpf.c")), &out).unwrap();
            fs::read(&out).unwrap()
        })
        .collect()
});

/// A change to an object.
#[derive(Clone, Debug)]
enum Change {
    /// This byte.
    Byte(Place, u8),
    /// These eight bytes, as a number of one of the sizes that tables hold.
    Word(Place, usize, u64),
    /// A piece of it, somewhere else.
    Copy(Place, Place, usize),
    /// The end.
    Cut(Place),
}

fn change() -> impl Strategy<Value = Change> {
    let number = prop_oneof![
        Just(0),
        Just(u64::MAX),
        Just(u64::from(u32::MAX)),
        Just(1 << 31),
        Just(1 << 63),
        Just(i64::MAX.cast_unsigned() - 7),
        0_u64..300,
        any::<u64>(),
    ];
    prop_oneof![
        3 => (any::<Place>(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        4 => (any::<Place>(), prop::sample::select(&[2_usize, 4, 8][..]), number)
            .prop_map(|(at, size, number)| Change::Word(at, size, number)),
        2 => (any::<Place>(), any::<Place>(), 1_usize..128)
            .prop_map(|(from, to, size)| Change::Copy(from, to, size)),
        1 => any::<Place>().prop_map(Change::Cut),
    ]
}

fn spoil(bytes: &mut Vec<u8>, change: &Change) {
    if bytes.len() < 16 {
        return;
    }
    match change {
        Change::Byte(at, value) => {
            let at = at.index(bytes.len());
            bytes[at] = *value;
        }
        Change::Word(at, size, number) => {
            // Tables are aligned.
            let at = at.index(bytes.len() / size) * size;
            bytes[at..at + size].copy_from_slice(&number.to_le_bytes()[..*size]);
        }
        Change::Copy(from, to, size) => {
            let from = from.index(bytes.len() - 1);
            let size = (*size).min(bytes.len() - from);
            let piece = bytes[from..from + size].to_vec();
            let to = to.index(bytes.len() - size + 1);
            bytes[to..to + size].copy_from_slice(&piece);
        }
        Change::Cut(at) => bytes.truncate(at.index(bytes.len())),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(bytes in vec(any::<u8>(), 0..4096)) {
        prop_assert!(read_object(&bytes).is_err());
    }

    #[test]
    fn a_spoiled_object(object in any::<Place>(), changes in vec(change(), 1..6)) {
        let mut bytes = object.get(&GOOD).clone();
        for change in &changes {
            spoil(&mut bytes, change);
        }
        bodies::object(&bytes);
    }

    /// What is behind the headers: only the tables of types are changed.
    #[test]
    fn spoiled_types(object in any::<Place>(), changes in vec(change(), 1..6)) {
        let mut bytes = object.get(&GOOD).clone();
        for name in [".BTF", ".BTF.ext", ".symtab"] {
            let Some((at, length)) = section(&bytes, name) else { continue };
            let mut part = bytes[at..at + length].to_vec();
            for change in changes.iter().filter(|change| !matches!(change, Change::Cut(_))) {
                spoil(&mut part, change);
            }
            bytes[at..at + length].copy_from_slice(&part);
        }
        bodies::object(&bytes);
    }
}

/// Where a section is in the file.
fn section(bytes: &[u8], wanted: &str) -> Option<(usize, usize)> {
    let headers = Headers::of(bytes);
    let (names, _) = headers.place(bytes, headers.names);
    (0..headers.count).find_map(|index| {
        let name = names + number(bytes, headers.at(index), 4);
        let found = bytes[name..].starts_with(wanted.as_bytes()) && bytes[name + wanted.len()] == 0;
        found.then(|| headers.place(bytes, index))
    })
}

/// The table of sections of a whole object.
struct Headers {
    table: usize,
    count: usize,
    names: usize,
}

impl Headers {
    /// struct `Elf64_Ehdr`: `e_shoff` at 40, `e_shnum` at 60, `e_shstrndx` at 62.
    fn of(bytes: &[u8]) -> Self {
        let (table, count) = (number(bytes, 40, 8), number(bytes, 60, 2));
        Self { table, count, names: number(bytes, 62, 2) }
    }

    fn at(&self, index: usize) -> usize {
        self.table + 64 * index
    }

    /// struct `Elf64_Shdr`: `sh_offset` at 24, `sh_size` at 32.
    fn place(&self, bytes: &[u8], index: usize) -> (usize, usize) {
        (number(bytes, self.at(index) + 24, 8), number(bytes, self.at(index) + 32, 8))
    }
}

fn number(bytes: &[u8], at: usize, size: usize) -> usize {
    let mut word = [0; 8];
    word[..size].copy_from_slice(&bytes[at..at + size]);
    usize::try_from(u64::from_le_bytes(word)).unwrap()
}

#[test]
fn whole_objects_are_read() {
    for object in GOOD.iter() {
        assert!(!read_object(object).unwrap().is_empty());
    }
}

#[test]
fn every_file_of_the_fuzzer_s_corpus() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/object");
    let mut files = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        let bytes = fs::read(&path).unwrap();
        bodies::object(&bytes);
        // Cut short, and with a bit turned over, at a few places.
        for part in 1..8 {
            let at = bytes.len() * part / 8;
            bodies::object(&bytes[..at]);
            let mut flipped = bytes.clone();
            if let Some(byte) = flipped.get_mut(at) {
                *byte ^= 1 << part;
            }
            bodies::object(&flipped);
        }
        files += 1;
    }
    assert!(files >= 4, "{files} files in {}", dir.display());
}

/// An object with more of everything than fits: many tables over the same bytes of the file.
struct Bomb {
    bytes: Vec<u8>,
}

impl Bomb {
    /// An object of `sections` sections that are all the same `payload` bytes of the file, of this
    /// type and flags, and a table of strings that is one long name.
    fn of(sections: u16, kind: u32, flags: u64, payload: usize) -> Self {
        let mut bytes = vec![0_u8; 64];
        let put = |bytes: &mut Vec<u8>, at: usize, value: &[u8]| {
            bytes[at..at + value.len()].copy_from_slice(value);
        };
        bytes.resize(64 + payload, b'x');
        let names = bytes.len();
        bytes.extend(vec![b'n'; payload]);
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let table = bytes.len();
        for index in 0..=sections + 1 {
            let (kind, flags, offset, size) = match index {
                0 => (0, 0, 0, 0),
                // SHT_STRTAB
                1 => (3, 0, names, payload + 1),
                _ => (kind, flags, 64, payload),
            };
            let mut header = vec![0_u8; 64];
            put(&mut header, 4, &u32::to_le_bytes(kind));
            put(&mut header, 8, &u64::to_le_bytes(flags));
            put(&mut header, 24, &(offset as u64).to_le_bytes());
            put(&mut header, 32, &(size as u64).to_le_bytes());
            put(&mut header, 40, &1_u32.to_le_bytes());
            bytes.extend(header);
        }
        put(&mut bytes, 0, b"\x7fELF\x02\x01\x01");
        put(&mut bytes, 16, &1_u16.to_le_bytes());
        put(&mut bytes, 18, &247_u16.to_le_bytes());
        put(&mut bytes, 20, &1_u32.to_le_bytes());
        put(&mut bytes, 40, &(table as u64).to_le_bytes());
        put(&mut bytes, 52, &64_u16.to_le_bytes());
        put(&mut bytes, 58, &64_u16.to_le_bytes());
        put(&mut bytes, 60, &(sections + 2).to_le_bytes());
        put(&mut bytes, 62, &1_u16.to_le_bytes());
        Self { bytes }
    }

    fn refusal(&self) -> String {
        let begun = Instant::now();
        let why = read_object(&self.bytes).unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}: {why}", begun.elapsed());
        why
    }
}

#[test]
fn tables_over_each_other_are_refused_before_they_are_copied() {
    // 60,000 sections of a megabyte are 60 GB, in an object of 6 MB.
    for (kind, flags) in [(1, 6), (1, 2), (3, 0), (4, 0), (2, 0)] {
        let why = Bomb::of(60_000, kind, flags, 1 << 20).refusal();
        let bounded = ["lie over each other", "longer than", "more than", "not a readable ELF"];
        assert!(bounded.iter().any(|limit| why.contains(limit)), "{why}");
    }
}

#[test]
fn a_long_name_is_refused_once_and_not_copied_often() {
    let why = Bomb::of(1, 1, 6, 1 << 20).refusal();
    assert!(why.contains("a name in it is longer than 512 bytes"), "{why}");
}

#[test]
fn an_object_that_is_too_long_is_refused() {
    let why = Bomb::of(1, 1, 6, 40 << 20).refusal();
    assert!(why.contains("more than 67108864 bytes"), "{why}");
}
