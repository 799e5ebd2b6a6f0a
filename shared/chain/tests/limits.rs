//! Limits: each refusal names the member, what is over, and what to do.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a failure is a panic"
)]

use canopy_api::{Hook, VerdictSet};
use canopy_chain::{
    Attachment, Code, ComposeError, Function, Map, MapLoad, MapSource, Member, compose,
    insn::{Insn, PSEUDO_MAP_VALUE},
    limits,
};
use std::{collections::BTreeSet, sync::Arc};

fn member(name: &str) -> Member {
    Member {
        name: name.parse().unwrap(),
        code: Code {
            instructions: vec![Insn::mov32_imm(0, 2), Insn::exit()],
            functions: vec![Function { name: "entry".into(), start: 0, btf: None }],
            ..Code::default()
        },
        maps: Vec::new(),
        proceed_on: VerdictSet::default_for(Hook::Xdp),
        licence: "GPL".into(),
        needs_gpl: false,
        frags: false,
        stack: vec![0],
        verified_instructions: 2,
        tail_calls: 0,
    }
}

/// Refused, and the error names this member.
fn refused(members: &[Member], who: Option<&str>) -> ComposeError {
    let error = compose(Attachment::Xdp, members).unwrap_err();
    assert_eq!(error.member().map(canopy_api::ProgramName::as_str), who, "{error}");
    assert!(!error.remedy().is_empty());
    assert!(!error.to_string().contains('\n'));
    error
}

fn taken(members: &[Member]) {
    compose(Attachment::Xdp, members).unwrap();
}

/// A member with functions that call each other in a row.
fn row(name: &str, functions: usize) -> Member {
    let mut member = member(name);
    member.code.instructions.clear();
    member.code.functions.clear();
    for i in 0..functions {
        let start = member.code.instructions.len();
        member.code.functions.push(Function { name: format!("f{i}"), start, btf: None });
        if i + 1 < functions {
            // To the next function, past this one's exit.
            member.code.instructions.push(Insn::call_local(1));
        }
        member.code.instructions.push(Insn::exit());
    }
    member.stack = vec![0; functions];
    member
}

/// A member with a function that calls all its others.
fn wide(name: &str, functions: usize) -> Member {
    let mut member = row(name, 1);
    member.code.instructions.clear();
    let calls = i32::try_from(functions - 1).unwrap();
    for i in 0..calls {
        // Past the calls that are left, the exit, and the functions before.
        member.code.instructions.push(Insn::call_local(calls - i - 1 + 1 + i));
    }
    member.code.instructions.push(Insn::exit());
    for i in 1..functions {
        let start = member.code.instructions.len();
        member.code.functions.push(Function { name: format!("f{i}"), start, btf: None });
        member.code.instructions.push(Insn::exit());
    }
    member.stack = vec![0; functions];
    member
}

/// A member that uses maps; the last `constant` of them are constant data of its own.
fn with_maps(name: &str, first_identity: u64, maps: usize, constant: usize) -> Member {
    let mut member = member(name);
    member.code.instructions.clear();
    for map in 0..maps {
        let at = member.code.instructions.len();
        let mut load = Insn::load_map(1);
        let is_constant = map >= maps - constant;
        if is_constant {
            load[0].src = PSEUDO_MAP_VALUE;
            load[1].imm = 4;
        }
        member.code.instructions.extend(load);
        member.code.maps.push(MapLoad { at, map });
        member.maps.push(Map {
            name: format!("map{map}"),
            identity: first_identity + map as u64,
            constant: is_constant.then(|| Arc::from(vec![u8::try_from(map).unwrap(); 12])),
        });
    }
    member.code.instructions.extend([Insn::mov32_imm(0, 2), Insn::exit()]);
    member
}

#[test]
fn an_empty_chain() {
    assert_eq!(refused(&[], None), ComposeError::Empty);
}

#[test]
fn more_members_than_can_be_counted() {
    let members: Vec<Member> = (0..63).map(|i| member(&format!("m{i}"))).collect();
    assert!(matches!(refused(&members, None), ComposeError::TooManyMembers { limit: 62, .. }));
    taken(&members[..62]);
}

#[test]
fn a_member_nobody_would_reach() {
    let mut first = member("first");
    first.proceed_on = VerdictSet::from_bits(0);
    let error = refused(&[first.clone(), member("second")], Some("first"));
    assert!(error.to_string().contains("second"));
    taken(&[first]);
}

#[test]
fn more_than_the_verifier_walks() {
    let big = |name: &str, walked| Member { verified_instructions: walked, ..member(name) };
    let error = refused(&[big("a", 400_000), big("b", 600_001)], Some("b"));
    assert!(error.to_string().contains("1000001"), "{error}");
    taken(&[big("a", 400_000), big("b", 600_000)]);
}

#[test]
fn stack_beyond_what_main_leaves() {
    let with_stack = |bytes| Member { stack: vec![bytes], ..member("deep") };
    assert!(matches!(
        refused(&[with_stack(497)], Some("deep")),
        ComposeError::Stack { bytes: 512, limit: 496, .. }
    ));
    taken(&[with_stack(496)]);
    // The sum of the deepest way counts, each frame rounded up to 16.
    let mut two = row("two", 2);
    two.stack = vec![250, 250];
    assert!(matches!(refused(&[two], Some("two")), ComposeError::Stack { bytes: 512, .. }));
}

#[test]
fn calls_beyond_what_main_leaves() {
    assert!(matches!(
        refused(&[row("row", 8)], Some("row")),
        ComposeError::Frames { frames: 8, limit: 7, .. }
    ));
    taken(&[row("row", 7)]);
}

#[test]
fn recursion_is_too_deep_and_does_not_hang() {
    let mut member = row("again", 2);
    // The second calls the first.
    member.code.instructions =
        vec![Insn::call_local(1), Insn::exit(), Insn::call_local(-3), Insn::exit()];
    assert!(matches!(refused(&[member], Some("again")), ComposeError::Frames { .. }));
}

#[test]
fn too_many_functions() {
    let members: Vec<Member> = (0..52).map(|i| wide(&format!("m{i}"), 5)).collect();
    assert!(matches!(
        refused(&members, Some("m0")),
        ComposeError::TooManyFunctions { count: 261, limit: limits::FUNCTIONS, own: 5, .. }
    ));
    taken(&members[..51]);
}

#[test]
fn too_many_maps() {
    let members: Vec<Member> = (0..32).map(|i| with_maps(&format!("m{i}"), i * 10, 2, 0)).collect();
    assert!(matches!(
        refused(&members, Some("m0")),
        ComposeError::TooManyMaps { count: 65, limit: 64, own: 2, .. }
    ));
    taken(&members[..31]);
    // The same maps in every member are there once.
    let shared: Vec<Member> = (0..32).map(|i| with_maps(&format!("m{i}"), 7, 2, 0)).collect();
    taken(&shared);
}

#[test]
fn constant_data_is_laid_together_when_there_would_be_too_many_maps() {
    let members: Vec<Member> = (0..40).map(|i| with_maps(&format!("m{i}"), i * 10, 2, 1)).collect();
    let few = compose(Attachment::Xdp, &members[..31]).unwrap();
    assert_eq!(few.constants, None, "not without need");

    let many = compose(Attachment::Xdp, &members).unwrap();
    let constants = many.constants.unwrap();
    let moved: Vec<_> = many.loads.iter().filter(|l| l.map == MapSource::Constants).collect();
    assert_eq!(moved.len(), 40);
    for (i, load) in moved.iter().enumerate() {
        let offset = usize::try_from(many.instructions[load.at + 1].imm).unwrap();
        assert_eq!(offset, i * 16 + 4, "aligned, and the place in the section kept");
        assert_eq!(constants[offset], 1, "the second map's contents");
    }
    let distinct: BTreeSet<_> = many.loads.iter().map(|l| l.map).collect();
    assert_eq!(distinct.len(), 42);
}

#[test]
fn tail_calls_share_one_budget() {
    let calling = |name: &str, tail_calls| Member { tail_calls, ..member(name) };
    let error = refused(&[calling("a", 2), calling("b", 33)], Some("b"));
    assert!(error.to_string().contains("\"a\""), "{error}");
    taken(&[calling("a", 33), member("b")]);
    taken(&[calling("a", 16), calling("b", 17)]);
}

#[test]
fn a_licence_is_never_upgraded() {
    let of = |name: &str, licence: &str, needs_gpl| Member {
        licence: licence.into(),
        needs_gpl,
        ..member(name)
    };
    let error = refused(&[of("own", "Proprietary", false), of("gpl", "GPL", true)], Some("gpl"));
    assert!(error.to_string().contains("\"own\"") && error.to_string().contains("Proprietary"));
    let licence = |members: &[Member]| compose(Attachment::Xdp, members).unwrap().licence;
    assert_eq!(licence(&[of("a", "GPL v2", true), of("b", "Dual MIT/GPL", false)]), "GPL");
    assert_eq!(licence(&[of("a", "GPL", false), of("b", "Apache-2.0", false)]), "Apache-2.0");
}

#[test]
fn multi_buffer_packets_only_if_every_member_takes_them() {
    let of = |name: &str, frags| Member { frags, ..member(name) };
    let frags = |members: &[Member]| compose(Attachment::Xdp, members).unwrap().frags;
    assert!(frags(&[of("a", true), of("b", true)]));
    assert!(!frags(&[of("a", true), of("b", false)]));
}

#[test]
fn code_that_contradicts_itself() {
    let mut member = member("odd");
    member.code.functions.clear();
    refused(&[member.clone()], Some("odd"));
    member.code.functions.push(Function { name: "f".into(), start: 9, btf: None });
    refused(&[member.clone()], Some("odd"));
    member.code.functions[0].start = 0;
    member.code.maps.push(MapLoad { at: 0, map: 0 });
    refused(&[member], Some("odd"));
}
