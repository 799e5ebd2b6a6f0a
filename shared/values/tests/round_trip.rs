//! Any bytes of any type come back from JSON as they were, and no type, however broken, makes the
//! codec panic or run away.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

use canopy_chain::btf::{Btf, Merger, kind};
use canopy_values::{Codec, ObjectTypes};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A type to be made.
#[derive(Clone, Debug)]
enum Spec {
    /// Size, encoding.
    Int(u32, u32),
    Char,
    BigEndian(u32),
    Float(u32),
    Pointer,
    /// Size, numbers, signed.
    Enum(u32, Vec<u32>),
    Enum64(Vec<u64>),
    Const(Box<Spec>),
    Array(Box<Spec>, u32),
    Struct(Vec<Spec>),
    Anonymous(Vec<Spec>),
    Union(Vec<Spec>),
    /// Widths of bit-fields of a 64-bit integer, signed.
    Bits(Vec<(u32, bool)>),
}

fn spec() -> impl Strategy<Value = Spec> {
    let size = || prop::sample::select(vec![1_u32, 2, 4, 8, 16]);
    let leaf = prop_oneof![
        (size(), prop::sample::select(vec![0_u32, 1, 4])).prop_map(|(s, e)| Spec::Int(s, e)),
        Just(Spec::Char),
        prop::sample::select(vec![2_u32, 4, 8]).prop_map(Spec::BigEndian),
        prop::sample::select(vec![4_u32, 8]).prop_map(Spec::Float),
        Just(Spec::Pointer),
        (prop::sample::select(vec![1_u32, 2, 4]), prop::collection::vec(0..9_u32, 1..6))
            .prop_map(|(size, numbers)| Spec::Enum(size, numbers)),
        prop::collection::vec(any::<u64>(), 1..4).prop_map(Spec::Enum64),
        prop::collection::vec((1..20_u32, any::<bool>()), 1..4).prop_map(Spec::Bits),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        let several = || prop::collection::vec(inner.clone(), 1..5);
        prop_oneof![
            inner.clone().prop_map(|spec| Spec::Const(Box::new(spec))),
            (inner.clone(), 0..5_u32).prop_map(|(spec, n)| Spec::Array(Box::new(spec), n)),
            (4..12_u32).prop_map(|n| Spec::Array(Box::new(Spec::Char), n)),
            several().prop_map(Spec::Struct),
            several().prop_map(Spec::Anonymous),
            several().prop_map(Spec::Union),
        ]
    })
}

/// Adds the type; its id and its size.
fn add(to: &mut Merger, spec: &Spec, names: &mut u32) -> (u32, u32) {
    match spec {
        Spec::Int(size, encoding) => {
            let encoding = if *size == 1 { *encoding } else { encoding & 1 };
            (to.add("int", kind::INT, 0, *size, &[(encoding << 24) | (size * 8)]), *size)
        }
        Spec::Char => (to.add("char", kind::INT, 0, 1, &[(1 << 24) | 8]), 1),
        Spec::BigEndian(size) => {
            let plain = to.add("unsigned", kind::INT, 0, *size, &[size * 8]);
            (to.add(&format!("__be{}", size * 8), kind::TYPEDEF, 0, plain, &[]), *size)
        }
        Spec::Float(size) => (to.add("float", kind::FLOAT, 0, *size, &[]), *size),
        Spec::Pointer => (to.add("", kind::PTR, 0, 0, &[]), 8),
        Spec::Enum(size, numbers) => {
            let mut words = Vec::new();
            for (i, number) in numbers.iter().enumerate() {
                words.extend([to.string(&format!("E{i}")), *number]);
            }
            let count = u16::try_from(numbers.len()).unwrap();
            (to.add("e", kind::ENUM, count, *size, &words), *size)
        }
        Spec::Enum64(numbers) => {
            let mut words = Vec::new();
            for (i, number) in numbers.iter().enumerate() {
                let (low, high) = (*number & 0xffff_ffff, *number >> 32);
                words.push(to.string(&format!("W{i}")));
                words.extend([low, high].map(|half| u32::try_from(half).unwrap()));
            }
            let count = u16::try_from(numbers.len()).unwrap();
            (to.add("w", kind::ENUM64, count, 8, &words), 8)
        }
        Spec::Const(inner) => {
            let (id, size) = add(to, inner, names);
            (to.add("", kind::CONST, 0, id, &[]), size)
        }
        Spec::Array(inner, count) => {
            let (id, size) = add(to, inner, names);
            (to.add("", kind::ARRAY, 0, 0, &[id, id, *count]), size * count)
        }
        Spec::Struct(members) => record(to, "s", members, false, names),
        Spec::Anonymous(members) => {
            let (id, size) = record(to, "", members, false, names);
            (to.add("s", kind::STRUCT, 1, size, &[0, id, 0]), size)
        }
        Spec::Union(members) => record(to, "u", members, true, names),
        Spec::Bits(widths) => {
            let unsigned = to.add("u64", kind::INT, 0, 8, &[64]);
            let signed = to.add("s64", kind::INT, 0, 8, &[(1 << 24) | 64]);
            let (mut words, mut at) = (Vec::new(), 0);
            for (width, is_signed) in widths {
                let ty = if *is_signed { signed } else { unsigned };
                words.extend([name(to, names), ty, (width << 24) | at]);
                at += width;
            }
            let count = u16::try_from(widths.len()).unwrap();
            let size = at.div_ceil(64) * 8;
            (flagged(to, count, size, &words), size)
        }
    }
}

/// A struct whose members carry their widths. The flag is the bit above the kind's seven.
fn flagged(to: &mut Merger, count: u16, size: u32, words: &[u32]) -> u32 {
    to.add("b", kind::STRUCT | 0x80, count, size, words)
}

fn name(to: &mut Merger, names: &mut u32) -> u32 {
    *names += 1;
    to.string(&format!("m{names}"))
}

fn record(
    to: &mut Merger,
    title: &str,
    members: &[Spec],
    union: bool,
    names: &mut u32,
) -> (u32, u32) {
    let (mut words, mut end, mut at) = (Vec::new(), 0, 0);
    for member in members {
        let (id, size) = add(to, member, names);
        words.extend([name(to, names), id, at * 8]);
        end = end.max(at + size);
        if !union {
            at += size;
        }
    }
    let kind = if union { kind::UNION } else { kind::STRUCT };
    (to.add(title, kind, u16::try_from(members.len()).unwrap(), end, &words), end)
}

fn has_bits(spec: &Spec) -> bool {
    match spec {
        Spec::Bits(_) => true,
        Spec::Const(inner) | Spec::Array(inner, _) => has_bits(inner),
        Spec::Struct(all) | Spec::Anonymous(all) | Spec::Union(all) => all.iter().any(has_bits),
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_value_survives_json(spec in spec(), noise in prop::collection::vec(any::<u8>(), 64), zeros in any::<bool>()) {
        let mut merger = Merger::default();
        let (ty, size) = add(&mut merger, &spec, &mut 0);
        let raw = merger.bytes();
        let codec = Codec::new(Btf::parse(&raw).unwrap());
        let bytes: Vec<u8> = noise.iter().cycle().take(size as usize)
            .map(|byte| if zeros && byte % 3 != 0 { 0 } else { *byte })
            .collect();
        let told = codec.decode(Some(ty), &bytes);
        // As text and back, as a client does.
        let read: Value = serde_json::from_str(&told.to_string()).unwrap();
        let back = codec.encode(Some(ty), bytes.len(), &read, "value").unwrap();
        prop_assert_eq!(&codec.decode(Some(ty), &back), &told);
        if !has_bits(&spec) {
            prop_assert_eq!(&back, &bytes, "{}", told);
        }
        codec.sum(Some(ty), &[&back, &back]);
        codec.declare(ty);
    }

    #[test]
    fn broken_types_break_nothing(at in any::<prop::sample::Index>(), byte in any::<u8>(), spec in spec()) {
        let mut merger = Merger::default();
        let (ty, size) = add(&mut merger, &spec, &mut 0);
        let mut raw = merger.bytes();
        let at = at.index(raw.len());
        raw[at] = byte;
        if let Ok(btf) = Btf::parse(&raw) {
            let codec = Codec::new(btf);
            let bytes = vec![7; size as usize];
            let told = codec.decode(Some(ty), &bytes);
            let _ = codec.encode(Some(ty), bytes.len(), &told, "");
            codec.sum(Some(ty), &[&bytes]);
            codec.declare(ty);
        }
    }

    #[test]
    fn no_file_is_too_broken_to_be_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _ = ObjectTypes::read(&bytes);
    }
}

#[test]
fn a_type_that_holds_itself_is_told_as_bytes() {
    let mut merger = Merger::default();
    let field = merger.string("field");
    // Type 1 is a struct with two members of type 1.
    merger.add("loop", kind::STRUCT, 2, 4, &[field, 1, 0, field, 1, 0]);
    let raw = merger.bytes();
    let codec = Codec::new(Btf::parse(&raw).unwrap());
    assert_eq!(codec.decode(Some(1), &[1, 2, 3, 4]), json!("01020304"));
    assert_eq!(codec.encode(Some(1), 4, &json!("01020304"), ""), Ok(vec![1, 2, 3, 4]));
}

#[test]
fn qualifiers_are_declared_however_many() {
    let mut merger = Merger::default();
    let int = merger.add("int", kind::INT, 0, 4, &[(1 << 24) | 32]);
    let volatile = merger.add("", kind::VOLATILE, 0, int, &[]);
    let both = merger.add("", kind::CONST, 0, volatile, &[]);
    // One that qualifies itself, and more in a row than a stack has room for.
    let itself = merger.add("", kind::CONST, 0, both + 1, &[]);
    let mut many = int;
    for _ in 0..100_000 {
        many = merger.add("", kind::VOLATILE, 0, many, &[]);
    }
    let raw = merger.bytes();
    let codec = Codec::new(Btf::parse(&raw).unwrap());
    assert_eq!(codec.declare(both), "const volatile int");
    assert!(codec.declare(itself).starts_with("const const "), "{}", codec.declare(itself));
    assert!(codec.declare(many).starts_with("volatile volatile "), "{}", codec.declare(many));
    assert_eq!(codec.decode(Some(both), &7_u32.to_ne_bytes()), json!(7));
    assert_eq!(codec.decode(Some(itself), &[1, 2]), json!("0102"));
}

#[test]
fn types_that_double_at_each_level_are_told_as_bytes() {
    let mut merger = Merger::default();
    let (one, two) = (merger.string("one"), merger.string("two"));
    let mut ty = merger.add("byte", kind::INT, 0, 1, &[8]);
    for _ in 0..40 {
        ty = merger.add("s", kind::STRUCT, 2, 1, &[one, ty, 0, two, ty, 0]);
    }
    let raw = merger.bytes();
    let codec = Codec::new(Btf::parse(&raw).unwrap());
    assert_eq!(codec.decode(Some(ty), &[9]), json!("09"));
    assert_eq!(codec.sum(Some(ty), &[[9]]), None);
    assert!(codec.declare(ty).len() < 4096);
}

#[test]
fn an_enumeration_of_64_bits() {
    let mut merger = Merger::default();
    let (small, large) = (merger.string("SMALL"), merger.string("LARGE"));
    let ty =
        merger.add("wide", kind::ENUM64, 2, 8, &[small, 1, 0, large, 0x89ab_cdef, 0x0123_4567]);
    let raw = merger.bytes();
    let codec = Codec::new(Btf::parse(&raw).unwrap());
    let bytes = 0x0123_4567_89ab_cdef_u64.to_ne_bytes();
    assert_eq!(codec.decode(Some(ty), &bytes), json!("LARGE"));
    assert_eq!(codec.encode(Some(ty), 8, &json!("LARGE"), "").unwrap(), bytes);
    assert_eq!(codec.decode(Some(ty), &0x89ab_cdef_u64.to_ne_bytes()), json!(0x89ab_cdef_u64));
}
