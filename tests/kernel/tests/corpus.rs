//! Objects of every shape that other projects write: each loads by what the caller says it is,
//! whatever its sections are called, and does in a chain what it does alone.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a failure is a panic"
)]

use canopy_api::{Hook, VerdictSet};
use canopy_kernel::{Kernel as _, MapContents, ShareScope, SharedMap};
use canopy_kernel_tests::chain::{Chains, member, object, object_with, packet};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const TC_SHOT: u32 = 2;
/// `TCX_NEXT`
const NEXT: u32 = u32::MAX;

/// An IPv4 packet from this source.
fn ipv4(source: [u8; 4]) -> Vec<u8> {
    let mut packet = packet(&[0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0]);
    packet[12..14].copy_from_slice(&[8, 0]);
    packet[26..30].copy_from_slice(&source);
    packet
}

fn number(map: &canopy_kernel_aya::sys::Map, key: u32) -> u64 {
    let value = map.lookup(&key.to_ne_bytes()).unwrap().unwrap();
    map.split(&value).iter().map(|part| u64::from_ne_bytes(part[..8].try_into().unwrap())).sum()
}

fn member_xdp(object_name: &str, function: &str) -> canopy_kernel::Member {
    let name = function.replace('_', "-");
    member(&name, Hook::Xdp, &object(object_name), function)
}

/// Loads a chain of one and runs it once.
fn alone(object_name: &str, function: &str) -> (Chains, u32) {
    let chains = Chains::new();
    chains.load(Hook::Xdp, 1, vec![member_xdp(object_name, function)]);
    let verdict = chains.run(Hook::Xdp, 1, &packet(&[])).retval;
    (chains, verdict)
}

#[test]
fn sec_tc_with_an_lpm_trie() {
    let chains = Chains::new();
    let mut block = member("block", Hook::TcIngress, &object("tc_lpm"), "block");
    let prefix = [&24u32.to_ne_bytes()[..], &[198, 51, 100, 0]].concat();
    block.map_entries =
        vec![MapContents { map: "blocked".into(), entries: vec![(prefix, vec![1, 0, 0, 0])] }];
    chains.load(Hook::TcIngress, 1, vec![block]);
    let verdict = |source| chains.run(Hook::TcIngress, 1, &ipv4(source)).retval;
    assert_eq!(verdict([198, 51, 100, 9]), TC_SHOT);
    assert_eq!(verdict([198, 51, 101, 9]), NEXT);
}

#[test]
fn sec_tcx_ingress_and_egress() {
    let chains = Chains::new();
    for (hook, function) in [(Hook::TcIngress, "on_ingress"), (Hook::TcEgress, "on_egress")] {
        chains.load(hook, 1, vec![member("count", hook, &object("tcx_percpu"), function)]);
        for _ in 0..3 {
            assert_eq!(chains.run(hook, 1, &packet(&[])).retval, NEXT);
        }
    }
    assert_eq!(number(&chains.map(Hook::TcIngress, 1, "count", "seen"), 0), 3);
    assert_eq!(number(&chains.map(Hook::TcEgress, 1, "count", "seen"), 1), 3);
}

#[test]
fn sec_xdp_frags_sees_the_whole_of_a_large_packet() {
    let chains = Chains::new();
    let mut measure = member_xdp("xdp_frags", "measure");
    measure.frags = true;
    chains.load(Hook::Xdp, 1, vec![measure.clone()]);
    let large = packet(&vec![0; 9000]);
    assert_eq!(chains.run(Hook::Xdp, 1, &large).retval, XDP_PASS);
    assert_eq!(chains.global(Hook::Xdp, 1, "measure", ".bss", 0), large.len() as u64);

    // Beside a member that does not handle them, the chain does not take them.
    chains.load(Hook::Xdp, 2, vec![measure, member_xdp("void_context", "untyped")]);
    assert_eq!(chains.run(Hook::Xdp, 2, &packet(&[0; 64])).retval, XDP_PASS);
}

#[test]
fn sec_classifier_with_and_without_a_name() {
    let chains = Chains::new();
    let object = object("classifier_foo");
    let members =
        ["foo", "bare"].map(|function| member(function, Hook::TcIngress, &object, function));
    chains.load(Hook::TcIngress, 1, members.to_vec());
    assert_eq!(chains.run(Hook::TcIngress, 1, &packet(&[])).retval, TC_SHOT, "the mark was seen");
}

#[test]
fn arbitrary_section_names_with_calls_between_sections() {
    let (chains, verdict) = alone("custom_sections", "entry");
    assert_eq!(verdict, XDP_PASS);
    assert_eq!(chains.global(Hook::Xdp, 1, "entry", ".bss", 0), 321);
    let (_, verdict) = alone("custom_sections", "second_entry");
    assert_eq!(verdict, 3, "TX: the section's second function, not its first");
}

#[test]
fn maps_pinned_by_name_are_the_interfaces() {
    let chains = Chains::new();
    let named = |name: &str| member(name, Hook::Xdp, &object("pinned_by_name"), "add_one");
    chains.load(Hook::Xdp, 1, vec![named("a"), named("b")]);
    chains.run_many(Hook::Xdp, 1, &packet(&[]), 5);
    assert_eq!(number(&chains.map(Hook::Xdp, 1, "a", "together"), 0), 10, "one map, two adders");

    // The next generation finds it as it is, and so does a chain of another hook.
    chains.load(Hook::Xdp, 2, vec![named("c")]);
    chains.run(Hook::Xdp, 2, &packet(&[]));
    assert_eq!(number(&chains.map(Hook::Xdp, 2, "c", "together"), 0), 11);

    // A scope that was asked for goes before.
    let mut on_host = named("d");
    on_host.shared_maps = vec![SharedMap { map: "together".into(), scope: ShareScope::Host }];
    chains.load(Hook::Xdp, 3, vec![on_host]);
    chains.run(Hook::Xdp, 3, &packet(&[]));
    assert_eq!(number(&chains.map(Hook::Xdp, 3, "d", "together"), 0), 1, "another map");

    // They go with the last generation that uses them.
    let shared = |chains: &Chains| chains.kernel.pins().shared().exists();
    let discard = |generation| {
        chains.kernel.discard(&Chains::key(Hook::Xdp), generation).unwrap();
    };
    discard(1);
    discard(3);
    assert!(shared(&chains), "generation 2 uses the interface's");
    chains.load(Hook::Xdp, 4, vec![named("e")]);
    discard(2);
    chains.run(Hook::Xdp, 4, &packet(&[]));
    assert_eq!(number(&chains.map(Hook::Xdp, 4, "e", "together"), 0), 12);
    discard(4);
    assert!(!shared(&chains), "{:?}", chains.paths());
}

#[test]
fn core_relocations_fit_the_running_kernel() {
    let chains = Chains::new();
    let hook = Hook::TcIngress;
    chains.load(hook, 1, vec![member("core", hook, &object("core"), "core")]);
    let sent = packet(&[1; 100]);
    chains.run(hook, 1, &sent);
    let values: Vec<u32> = [".bss", ".data"]
        .into_iter()
        .flat_map(|map| {
            let value = chains.map(hook, 1, "core", map).lookup(&[0; 4]).unwrap().unwrap();
            value.as_chunks::<4>().0.iter().map(|b| u32::from_ne_bytes(*b)).collect::<Vec<_>>()
        })
        .collect();
    // .bss in the order of the symbols is the compiler's business; the set of values is not.
    let [other_exists] = values[5..] else { panic!("{values:?}") };
    assert_eq!(other_exists, 0, "a field no kernel has");
    let mut found = values[..5].to_vec();
    let plain = u32::try_from(sent.len()).unwrap();
    for expected in [plain, plain, 1, 11] {
        let at = found.iter().position(|value| *value == expected);
        found.remove(at.unwrap_or_else(|| panic!("{expected} is not in {values:?}")));
    }
    assert!(found[0] > 0, "the offset of net_device.mtu: {values:?}");
}

#[test]
fn legacy_maps_sections() {
    let (chains, verdict) = alone("legacy_maps", "old");
    assert_eq!(verdict, XDP_PASS);
    assert_eq!(number(&chains.map(Hook::Xdp, 1, "old", "counters"), 5), 1);
    assert_eq!(number(&chains.map(Hook::Xdp, 1, "old", "totals"), 0), 1);
}

#[test]
fn legacy_maps_in_maps_are_found_by_id() {
    let (chains, verdict) = alone("legacy_nested", "count");
    assert_eq!(verdict, XDP_PASS);
    assert_eq!(number(&chains.map(Hook::Xdp, 1, "count", "inner"), 0), 1);
    let outer = chains.map(Hook::Xdp, 1, "count", "outer");
    let inner = chains.map(Hook::Xdp, 1, "count", "inner").info().id;
    assert_eq!(outer.lookup(&1_u32.to_ne_bytes()).unwrap(), Some(inner.to_ne_bytes().to_vec()));
    // Of a map that is not there.
    let other = object_with("legacy_nested", &["-DOTHER_ID"]);
    let error = Chains::new()
        .prepare(Hook::Xdp, 1, vec![member("count", Hook::Xdp, &other, "count")])
        .unwrap_err();
    let canopy_kernel::KernelError::Refused { member, reason, remedy, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(member.unwrap().as_str(), "count");
    assert!(reason.contains("\"outer\"") && reason.contains("id 43"), "{reason}");
    assert!(remedy.contains("inner map"), "{remedy}");
}

#[test]
fn objects_without_type_information() {
    let chains = Chains::new();
    let bare = object_with("legacy_maps", &["-g0"]);
    chains.load(
        Hook::Xdp,
        1,
        vec![member("a", Hook::Xdp, &bare, "old"), member("b", Hook::Xdp, &bare, "old")],
    );
    assert_eq!(chains.run(Hook::Xdp, 1, &packet(&[])).retval, XDP_PASS);
    for name in ["a", "b"] {
        assert_eq!(number(&chains.map(Hook::Xdp, 1, name, "counters"), 5), 1);
    }
}

#[test]
fn ring_buffers_and_perf_arrays_get_a_size() {
    let (chains, verdict) = alone("ringbuf", "report");
    assert_eq!(verdict, XDP_PASS);
    assert_eq!(chains.map(Hook::Xdp, 1, "report", "events").info().max_entries, 8192);
    let samples = chains.map(Hook::Xdp, 1, "report", "samples").info().max_entries;
    assert_eq!(samples as usize, canopy_kernel_aya::sys::possible_cpus().unwrap());
}

#[test]
fn maps_of_maps_filled_in_the_object() {
    let (chains, verdict) = alone("map_in_map", "nested");
    assert_eq!(verdict, XDP_PASS);
    assert_eq!(number(&chains.map(Hook::Xdp, 1, "nested", "second"), 0), 1);
    assert_eq!(number(&chains.map(Hook::Xdp, 1, "nested", "first"), 0), 0);
}

#[test]
fn functions_callbacks_and_their_stack() {
    let chains = Chains::new();
    let many = (0..6)
        .map(|i| member(&format!("functions-{i}"), Hook::Xdp, &object("functions"), "functions"));
    chains.load(Hook::Xdp, 1, many.collect());
    assert_eq!(chains.run(Hook::Xdp, 1, &packet(&[])).retval, XDP_PASS);
    assert_eq!(chains.cells(Hook::Xdp, 1)[5].runs(), 1);
}

#[test]
fn spin_locks_and_timers() {
    let chains = Chains::new();
    let members =
        ["one", "two"].map(|name| member(name, Hook::Xdp, &object("lock_timer"), "lock_timer"));
    chains.load(Hook::Xdp, 1, members.to_vec());
    assert_eq!(chains.run(Hook::Xdp, 1, &packet(&[])).retval, XDP_PASS);
    for name in ["one", "two"] {
        canopy_test_support::wait_for(std::time::Duration::from_secs(5), "the timer", || {
            let fired = chains.global(Hook::Xdp, 1, name, ".bss", 0);
            if fired > 0 { Ok(()) } else { Err(fired) }
        })
        .unwrap();
    }
}

#[test]
fn tail_calls_come_back_to_the_chain() {
    let chains = Chains::new();
    chains.load(
        Hook::Xdp,
        1,
        vec![
            member_xdp("tail_calls", "tail_calls"),
            member("again", Hook::Xdp, &object("tail_calls"), "tail_calls"),
            member_xdp("void_context", "untyped"),
        ],
    );
    assert_eq!(chains.run(Hook::Xdp, 1, &packet(&[])).retval, XDP_PASS);
    for name in ["tail-calls", "again"] {
        assert_eq!(chains.global(Hook::Xdp, 1, name, ".bss", 0), 1, "first of {name}");
        assert_eq!(chains.global(Hook::Xdp, 1, name, ".bss", 8), 1, "second of {name}");
    }
    let cells = chains.cells(Hook::Xdp, 1);
    assert_eq!(cells.iter().map(canopy_kernel::MemberCells::runs).collect::<Vec<_>>(), [1, 1, 1]);
}

#[test]
fn data_sections_start_as_written_and_as_configured() {
    let chains = Chains::new();
    let mut data = member_xdp("data_sections", "data_sections");
    data.globals = vec![
        ("limit".into(), 5u32.to_ne_bytes().to_vec()),
        ("start".into(), 100u32.to_ne_bytes().to_vec()),
    ];
    chains.load(Hook::Xdp, 1, vec![data]);
    let sum = |chains: &Chains| {
        let bss = chains.map(Hook::Xdp, 1, "data-sections", ".bss");
        let value = bss.lookup(&[0; 4]).unwrap().unwrap();
        value.as_chunks::<8>().0.iter().map(|b| u64::from_ne_bytes(*b)).max().unwrap()
    };
    assert_eq!(chains.run(Hook::Xdp, 1, &packet(&[])).retval, XDP_PASS);
    // 100 + 5 + (7 + 1), then 101 + 5 + (8 + 1)
    assert_eq!(sum(&chains), 113);
    chains.run(Hook::Xdp, 1, &packet(&[]));
    assert_eq!(sum(&chains), 115);
    assert_eq!(chains.global(Hook::Xdp, 1, "data-sections", ".data.own", 0), 9);
    let constants = chains.map(Hook::Xdp, 1, "data-sections", ".rodata");
    let write = constants.update(&[0; 4], &vec![0; constants.info().value_size as usize], 0);
    assert!(write.is_err(), "constants are frozen");
}

#[test]
fn packets_changed_by_one_member_are_seen_by_the_next() {
    let chains = Chains::new();
    let of = |function: &str| member_xdp("adjust_head", function);
    let sent = packet(&[7; 100]);
    chains.load(Hook::Xdp, 1, vec![of("push"), of("pop"), of("cut_tail")]);
    let out = chains.run(Hook::Xdp, 1, &sent);
    assert_eq!(out.retval, XDP_PASS);
    assert_eq!(out.data, sent[..sent.len() - 10]);

    chains.load(Hook::Xdp, 2, vec![of("pop"), of("push")]);
    assert_eq!(chains.run(Hook::Xdp, 2, &sent).retval, XDP_DROP, "nothing to pop yet");

    let of = |function: &str| {
        member(&function.replace('_', "-"), Hook::TcIngress, &object("adjust_head"), function)
    };
    chains.load(Hook::TcIngress, 1, vec![of("tag"), of("want_tag")]);
    assert_eq!(chains.run(Hook::TcIngress, 1, &sent).retval, NEXT);
    chains.load(Hook::TcIngress, 2, vec![of("want_tag"), of("tag")]);
    assert_eq!(chains.run(Hook::TcIngress, 2, &sent).retval, TC_SHOT);
}

#[test]
fn kernel_functions_by_name() {
    let (_, verdict) = alone("kfuncs", "kfuncs");
    assert_eq!(verdict, XDP_PASS);
}

#[test]
fn kernel_version_and_options() {
    let (chains, verdict) = alone("kconfig", "kconfig");
    assert_eq!(verdict, XDP_PASS);
    let release = chains.kernel.release();
    let part = |n| {
        let part = release.split(['.', '-']).nth(n).and_then(|part| part.parse::<u64>().ok());
        part.unwrap_or(0)
    };
    let version = (part(0) << 16) + (part(1) << 8) + part(2).min(255);
    assert_eq!(chains.global(Hook::Xdp, 1, "kconfig", ".bss", 0), version, "{release}");
}

#[test]
fn packet_writes_and_classic_loads() {
    let chains = Chains::new();
    let object = object("tc_packet");
    let of = |function: &str| member(function, Hook::TcIngress, &object, function);
    chains.load(Hook::TcIngress, 1, vec![of("write"), of("read")]);
    let out = chains.run(Hook::TcIngress, 1, &packet(&[]));
    assert_eq!((out.retval, out.data[0]), (NEXT, 0x42));
    chains.load(Hook::TcIngress, 2, vec![of("read"), of("write")]);
    assert_eq!(chains.run(Hook::TcIngress, 2, &packet(&[])).retval, TC_SHOT);
}

#[test]
fn unusual_prototypes() {
    let chains = Chains::new();
    let members = ["untyped", "wide"].map(|function| member_xdp("void_context", function));
    chains.load(Hook::Xdp, 1, members.to_vec());
    assert_eq!(chains.run(Hook::Xdp, 1, &packet(&[])).retval, XDP_PASS);
}

#[test]
fn one_chain_of_many_kinds() {
    let chains = Chains::new();
    let proceed = VerdictSet::default_for(Hook::Xdp);
    let members: Vec<_> = [
        ("void_context", "untyped"),
        ("legacy_maps", "old"),
        ("functions", "functions"),
        ("ringbuf", "report"),
        ("map_in_map", "nested"),
        ("custom_sections", "entry"),
        ("lock_timer", "lock_timer"),
        ("tail_calls", "tail_calls"),
        ("data_sections", "data_sections"),
        ("pinned_by_name", "add_one"),
        ("kfuncs", "kfuncs"),
        ("xdp_frags", "measure"),
        ("adjust_head", "cut_tail"),
        ("void_context", "wide"),
    ]
    .into_iter()
    .map(|(object, function)| member_xdp(object, function))
    .inspect(|member| assert_eq!(member.proceed_on, proceed))
    .collect();
    let length = members.len();
    chains.load(Hook::Xdp, 1, members);
    for _ in 0..10 {
        assert_eq!(chains.run(Hook::Xdp, 1, &packet(&[0; 64])).retval, XDP_PASS);
    }
    let cells = chains.cells(Hook::Xdp, 1);
    assert_eq!(cells.len(), length);
    assert!(cells.iter().all(|cell| cell.runs() == 10), "{cells:?}");
}
