//! Merging type information: what comes out can be read, and means what went in.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a failure is a panic"
)]

use canopy_api::{Hook, VerdictSet};
use canopy_chain::{
    Attachment, Code, Function, Member, Shape, alone,
    btf::{Btf, FUNC_GLOBAL, Merger, kind},
    compose_as,
    insn::Insn,
};
use proptest::prelude::*;
use std::sync::Arc;

/// An object's types: each refers to types before it.
fn object() -> impl Strategy<Value = Arc<[u8]>> {
    let ty = (0usize..12, "[a-z_][a-z0-9_.<> ]{0,6}", any::<u32>(), any::<u32>());
    proptest::collection::vec(ty, 1..30).prop_map(|types| {
        let mut merger = Merger::default();
        let mut count = merger.add("int", kind::INT, 0, 4, &[1 << 24 | 32]);
        for (which, name, a, b) in types {
            let earlier = |n: u32| 1 + n % count;
            let member = merger.string("member");
            count = match which {
                0 => merger.add(&name, kind::INT, 0, 4, &[32]),
                1 => merger.add("", kind::PTR, 0, earlier(a), &[]),
                2 => merger.add("", kind::ARRAY, 0, 0, &[earlier(a), 1, b % 9]),
                3 => {
                    let members = [member, earlier(a), 0, 0, earlier(b), 64];
                    merger.add(&name, kind::STRUCT, 2, 16, &members)
                }
                4 => merger.add(&name, kind::ENUM, 1, 4, &[member, b]),
                5 => merger.add(&name, kind::TYPEDEF, 0, earlier(a), &[]),
                6 => merger.add("", kind::CONST, 0, earlier(a), &[]),
                // A parameter without a name, and one of "...".
                7 => merger.add("", kind::FUNC_PROTO, 2, earlier(a), &[0, earlier(b), 0, 0]),
                // An undefined function.
                8 => merger.add(&name, kind::FUNC, 2, earlier(a), &[]),
                9 => merger.add(&name, kind::VAR, 0, earlier(a), &[1]),
                10 => merger.add(".bss", kind::DATASEC, 1, 8, &[earlier(a), 0, 8]),
                _ => merger.add("tag", kind::DECL_TAG, 0, earlier(a), &[u32::MAX]),
            };
        }
        Arc::from(merger.bytes())
    })
}

fn merge(object: &Arc<[u8]>) -> Arc<[u8]> {
    let mut merger = Merger::default();
    merger.import(object).unwrap();
    Arc::from(merger.bytes())
}

/// Whether a type's size hangs on something that is replaced by something of another size.
fn reaches_replaced(btf: &Btf<'_>, id: u32, depth: u32) -> bool {
    let Some(ty) = btf.get(id).filter(|_| depth < 40) else { return true };
    match ty.kind {
        kind::VAR | kind::DATASEC | kind::DECL_TAG => true,
        kind::TYPEDEF | kind::CONST => reaches_replaced(btf, ty.size_or_type, depth + 1),
        kind::ARRAY => reaches_replaced(btf, ty.word(0), depth + 1),
        _ => false,
    }
}

proptest! {
    #[test]
    fn merged_types_are_readable_and_keep_their_meaning(
        objects in proptest::collection::vec(object(), 1..4),
    ) {
        let mut merger = Merger::default();
        let imports: Vec<_> =
            objects.iter().map(|object| merger.import(object).unwrap()).collect();
        let bytes = merger.bytes();
        let merged = Btf::parse(&bytes).unwrap();
        for (object, import) in objects.iter().zip(&imports) {
            let source = Btf::parse(object).unwrap();
            // Data sections that the kernel takes stay, with their variables.
            let whole: Vec<u32> = source
                .iter()
                .filter(|(_, ty)| source.is_whole_section(ty))
                .flat_map(|(id, ty)| [id, ty.word(0)])
                .collect();
            for (id, ty) in source.iter() {
                let there = merged.get(import.type_id(id)).unwrap();
                match ty.kind {
                    kind::VAR | kind::DATASEC if whole.contains(&id) => {
                        prop_assert_eq!(there.kind, ty.kind);
                        prop_assert_eq!(source.size(id), merged.size(import.type_id(id)));
                    }
                    kind::VAR => prop_assert_eq!(there.kind, kind::INT),
                    kind::DATASEC => prop_assert_eq!((there.kind, there.vlen), (kind::STRUCT, 0)),
                    kind::DECL_TAG => {
                        prop_assert!(matches!(there.kind, kind::DECL_TAG | kind::INT));
                    }
                    kind => {
                        prop_assert_eq!(there.kind, kind);
                        if !reaches_replaced(&source, id, 0) {
                            prop_assert_eq!(source.size(id), merged.size(import.type_id(id)));
                        }
                    }
                }
                if ty.kind == kind::FUNC {
                    prop_assert!(there.vlen <= FUNC_GLOBAL);
                }
                if ty.kind == kind::FUNC_PROTO {
                    prop_assert_ne!(merged.string(there.word(0)), "", "a parameter has a name");
                    prop_assert_eq!(there.word(2), 0, "and \"...\" has none");
                }
                let name = merged.string(there.name);
                prop_assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "_.".contains(c)));
            }
        }
    }

    #[test]
    fn merging_what_was_merged_changes_nothing(object in object()) {
        let once = merge(&object);
        prop_assert_eq!(&merge(&once), &once);
    }

    #[test]
    fn the_same_object_is_there_once(object in object()) {
        let mut merger = Merger::default();
        let first = merger.import(&object).unwrap();
        let second = merger.import(&Arc::from(object.to_vec())).unwrap();
        prop_assert_eq!(first.type_id(1), second.type_id(1));
        prop_assert_eq!(merger.bytes(), merge(&object).to_vec());
    }

    #[test]
    fn reading_never_panics(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        with_header: bool,
    ) {
        if with_header && bytes.len() >= 24 {
            let half = u32::try_from((bytes.len() - 24) / 8 * 4).unwrap();
            bytes[..2].copy_from_slice(&0xeb9fu16.to_ne_bytes());
            for (at, word) in [(4, 24), (8, 0), (12, half), (16, half), (20, half)] {
                bytes[at..at + 4].copy_from_slice(&u32::to_ne_bytes(word));
            }
        }
        if let Ok(btf) = Btf::parse(&bytes) {
            for (id, ty) in btf.iter() {
                let _ = (btf.size(id), btf.resolve(id), btf.string(ty.name));
            }
            let _ = Merger::default().import(&Arc::from(bytes.clone()));
        }
    }
}

/// An object with a list of nodes of this size: `bpf_list_node` is type 2, `node` 3, its list 5.
fn with_list(size: u32) -> Arc<[u8]> {
    let mut merger = Merger::default();
    let int = merger.add("int", kind::INT, 0, 4, &[1 << 24 | 32]);
    let link = merger.add("bpf_list_node", kind::STRUCT, 0, 24, &[]);
    let name = merger.string("link");
    merger.add("node", kind::STRUCT, 1, size, &[name, link, 0]);
    let head = merger.add("bpf_list_head", kind::STRUCT, 0, 16, &[]);
    let name = merger.string("head");
    let holder = merger.add("holder", kind::STRUCT, 1, 16, &[name, head, 0]);
    merger.add("contains:node:link", kind::DECL_TAG, 0, holder, &[0]);
    merger.add("other", kind::TYPEDEF, 0, int, &[]);
    Arc::from(merger.bytes())
}

#[test]
fn structs_in_lists_are_found_by_a_name_of_their_own() {
    let mut merger = Merger::default();
    let objects = [with_list(24), with_list(80), with_list(160)];
    let imports: Vec<_> = objects.iter().map(|object| merger.import(object).unwrap()).collect();
    let bytes = merger.bytes();
    let types = Btf::parse(&bytes).unwrap();
    let name = |id| types.string(types.get(id).unwrap().name);
    for (import, (node, tag)) in imports.iter().zip([
        ("node", "contains:node:link"),
        ("node__2", "contains:node__2:link"),
        ("node__3", "contains:node__3:link"),
    ]) {
        assert_eq!((name(import.type_id(3)), name(import.type_id(6))), (node, tag));
    }
}

#[test]
fn special_fields_are_of_the_types_of_the_first_object() {
    let mut merger = Merger::default();
    let first = merger.import(&with_list(24)).unwrap();
    let second = merger.import(&with_list(80)).unwrap();
    let bytes = merger.bytes();
    let types = Btf::parse(&bytes).unwrap();
    for (own, field) in [(3, 2), (5, 4)] {
        let ty = types.get(second.type_id(own)).unwrap();
        assert_eq!(ty.word(1), first.type_id(field), "{}", types.string(ty.name));
    }
    assert_ne!(first.type_id(3), second.type_id(3));
}

#[test]
fn numbers_of_types_in_instructions_move_with_the_types() {
    // r0 = the number of type 3; r0 = 2; exit
    let with_number = |name: &str, object: Arc<[u8]>| Member {
        name: name.parse().unwrap(),
        code: Code {
            instructions: vec![Insn::mov32_imm(0, 3), Insn::mov32_imm(0, 2), Insn::exit()],
            functions: vec![Function { name: "entry".to_owned(), start: 0, btf: None }],
            btf: Some(object),
            type_ids: vec![0],
            ..Code::default()
        },
        maps: Vec::new(),
        proceed_on: VerdictSet::default_for(Hook::Xdp),
        licence: "GPL".to_owned(),
        needs_gpl: false,
        frags: false,
        stack: vec![0],
        verified_instructions: 3,
        tail_calls: 0,
    };
    let (first, second) = (with_list(24), with_list(80));
    let members = [
        with_number("one", Arc::clone(&first)),
        with_number("two", Arc::clone(&second)),
        // The same object again: its types are there once.
        with_number("three", first),
    ];
    let shift = i32::try_from(Btf::parse(&second).unwrap().len()).unwrap();
    for shape in [Shape::Calls, Shape::Inlined] {
        let composed = compose_as(Attachment::Xdp, &members, shape).unwrap();
        assert_eq!(composed.inlined, if shape == Shape::Inlined { 3 } else { 0 });
        let merged = Btf::parse(&composed.btf).unwrap();
        let numbers: Vec<i32> = composed
            .instructions
            .iter()
            .map(|insn| (insn, insn.imm))
            .filter(|(insn, imm)| {
                **insn == Insn::mov32_imm(0, *imm) && [3, 3 + shift].contains(imm)
            })
            .map(|(_, imm)| imm)
            .collect();
        assert_eq!(numbers, [3, 3 + shift, 3], "{shape:?}");
        let size = |id: i32| merged.size(id.cast_unsigned());
        assert_eq!((size(3), size(3 + shift)), (Some(24), Some(80)));
    }
    let composed = alone(Attachment::Xdp, &members[1]).unwrap();
    assert_eq!(composed.instructions[0].imm, 3);
}
