//! What cannot be a chain is refused with the program, the reason and a remedy, and leaves nothing
//! behind: no pin, no program, no map, and the generation before as it was.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "test code: a failure is a panic"
)]

use canopy_api::{Hook, TcMode, VerdictSet, XdpMode};
use canopy_kernel::{
    ChainBuild, Kernel as _, KernelError, MapContents, Member, ShareScope, SharedMap,
};
use canopy_kernel_tests::chain::{Chains, member, object, object_with, packet};
use std::{
    fs,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Kernel objects this process holds.
fn held() -> Vec<String> {
    let mut held: Vec<String> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .map(|target| target.display().to_string())
        .filter(|target| target.contains("bpf") || target.contains("btf"))
        .collect();
    held.sort();
    held
}

/// One test at a time: they look at what the process holds.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Refusal {
    reason: String,
    remedy: String,
    log: Option<String>,
}

/// Refused: the error blames `who`, has a reason and a remedy of one line each, and nothing is left.
fn refused(hook: Hook, members: Vec<Member>, who: Option<&str>) -> Refusal {
    let chains = Chains::new();
    let verdict = "wide";
    if hook == Hook::Xdp {
        chains.load(hook, 1, vec![member(verdict, hook, &object("void_context"), "wide")]);
    }
    let (paths, before) = (chains.paths(), held());
    let error = chains.prepare(hook, 2, members).unwrap_err();
    assert_eq!(chains.paths(), paths, "pins are left");
    assert_eq!(held(), before, "kernel objects are left");
    if hook == Hook::Xdp {
        assert_eq!(chains.run(hook, 1, &packet(&[])).retval, 2, "the generation before runs");
    }
    let KernelError::Refused { member, reason, remedy, log } = error else {
        panic!("{error:?}");
    };
    assert_eq!(member.as_ref().map(canopy_api::ProgramName::as_str), who, "{reason}");
    assert!(!reason.is_empty() && !reason.contains('\n'), "{reason}");
    assert!(!remedy.is_empty() && !remedy.contains('\n'), "{remedy}");
    println!("{who:?}: {reason}; {remedy}");
    Refusal { reason, remedy, log }
}

fn xdp(object_name: &str, function: &str) -> Member {
    member(&function.replace('_', "-"), Hook::Xdp, &object(object_name), function)
}

fn good() -> Member {
    xdp("void_context", "untyped")
}

#[test]
fn an_object_the_verifier_rejects() {
    let _turn = turn();
    let refusal = refused(Hook::Xdp, vec![good(), xdp("rejected", "rejected")], Some("rejected"));
    assert!(refusal.reason.contains("rejected.bpf.c") || refusal.reason.contains("data[3]"));
    assert!(refusal.reason.contains("packet"), "{}", refusal.reason);
    assert!(refusal.log.is_some_and(|log| log.contains("processed")));
}

#[test]
fn stack_and_frames_that_leave_nothing_to_the_chain() {
    let _turn = turn();
    let refusal = refused(Hook::Xdp, vec![good(), xdp("limits", "much_stack")], Some("much-stack"));
    assert!(refusal.reason.contains("stack"), "{}", refusal.reason);
    let refusal = refused(Hook::Xdp, vec![xdp("limits", "deep"), good()], Some("deep"));
    assert!(refusal.reason.contains("frames"), "{}", refusal.reason);
}

#[test]
fn more_than_the_verifier_walks_together() {
    let _turn = turn();
    let chains = Chains::new();
    chains.load(Hook::Xdp, 1, vec![xdp("limits", "long_walk")]);
    let again = Member { name: "again".parse().unwrap(), ..xdp("limits", "long_walk") };
    let refusal = refused(Hook::Xdp, vec![xdp("limits", "long_walk"), again], Some("long-walk"));
    assert!(refusal.reason.contains("1000000"), "{}", refusal.reason);
}

#[test]
fn more_maps_than_a_program_may_use() {
    let _turn = turn();
    let of = |function: &str, count: u32| -> Vec<Member> {
        let numbered = |i| {
            let constant = vec![("constant".to_owned(), u64::from(i).to_ne_bytes().to_vec())];
            let name = format!("p{i}").parse().unwrap();
            Member { name, globals: constant, ..xdp("limits", function) }
        };
        (0..count).map(numbered).collect()
    };
    let refusal = refused(Hook::Xdp, of("three_maps", 33), Some("p0"));
    assert!(refusal.reason.contains("64"), "{}", refusal.reason);

    // 40 maps and 40 sections of constants fit, because the constants are laid together.
    let chains = Chains::new();
    let prepared = chains.load(Hook::Xdp, 1, of("two_maps", 40));
    assert!(prepared.notes.iter().any(|note| note.contains("constant")), "{:?}", prepared.notes);
    assert_eq!(chains.run(Hook::Xdp, 1, &packet(&[])).retval, 2);
    for i in [0u32, 7, 39] {
        let map = chains.map(Hook::Xdp, 1, &format!("p{i}"), "one");
        let value = map.lookup(&[0; 4]).unwrap().unwrap();
        assert_eq!(value, u64::from(i).to_ne_bytes(), "each reads its own constant");
    }
}

#[test]
fn a_licence_that_would_have_to_be_upgraded() {
    let _turn = turn();
    let own = object_with("licences", &["-DLICENCE=\"Apache-2.0\""]);
    let own = |function: &str| member("own", Hook::Xdp, &own, function);
    let refusal = refused(Hook::Xdp, vec![own("reserved")], Some("own"));
    assert!(refusal.reason.contains("GPL"), "{}", refusal.reason);

    let refusal =
        refused(Hook::Xdp, vec![own("unreserved"), xdp("licences", "reserved")], Some("reserved"));
    assert!(refusal.reason.contains("\"own\"") && refusal.reason.contains("Apache-2.0"));

    // Nobody needs them: the chain takes the stricter licence.
    let chains = Chains::new();
    let prepared =
        chains.load(Hook::Xdp, 1, vec![own("unreserved"), xdp("licences", "unreserved")]);
    assert!(prepared.notes.iter().any(|note| note.contains("Apache-2.0")), "{:?}", prepared.notes);
}

#[test]
fn tail_calls_that_could_starve_another_member() {
    let _turn = turn();
    // Others may fill an array that is shared.
    let shared =
        |name: &str| member(name, Hook::Xdp, &object("tail_calls_outside"), "tail_calls_shared");
    let refusal = refused(Hook::Xdp, vec![shared("a"), shared("b")], Some("a"));
    assert!(refusal.reason.contains("tail calls"), "{}", refusal.reason);
    assert!(refusal.remedy.contains("tail_calls"), "{}", refusal.remedy);
    Chains::new().load(Hook::Xdp, 1, vec![shared("a"), good()]);
    let says = |name: &str, calls| Member { tail_calls: Some(calls), ..shared(name) };
    refused(Hook::Xdp, vec![says("a", 16), says("b", 18)], Some("b"));
    Chains::new().load(Hook::Xdp, 1, vec![says("a", 16), says("b", 17)]);
}

/// An array of a member's own that its object leaves empty: whoever tail-calls through it goes on.
#[test]
fn members_with_empty_program_arrays_share_a_chain() {
    let _turn = turn();
    let outside =
        |name: &str| member(name, Hook::Xdp, &object("tail_calls_outside"), "tail_calls_outside");
    let chains = Chains::new();
    let filled = xdp("tail_calls", "tail_calls");
    chains.load(Hook::Xdp, 1, vec![outside("a"), filled, outside("b"), outside("c"), good()]);
    for _ in 0..3 {
        assert_eq!(chains.run(Hook::Xdp, 1, &packet(&[])).retval, 2);
    }
    assert_eq!(chains.global(Hook::Xdp, 1, "tail-calls", ".bss", 0), 3, "its targets ran");
    let cells = chains.cells(Hook::Xdp, 1);
    assert!(cells.iter().all(|member| member.runs() == 3), "{cells:?}");
}

#[test]
fn a_package_that_denies_the_tail_calls_of_its_object() {
    let _turn = turn();
    let member = Member { tail_calls: Some(0), ..xdp("tail_calls", "tail_calls") };
    let refusal = refused(Hook::Xdp, vec![good(), member], Some("tail-calls"));
    assert!(refusal.reason.contains("tail calls"), "{}", refusal.reason);
    assert!(refusal.remedy.contains("tail_calls"), "{}", refusal.remedy);
}

/// An exception unwinds the generated `main` too: members behind it would be skipped, and the packet be
/// in no count.
#[test]
fn members_that_throw_are_refused_at_every_place() {
    let _turn = turn();
    for function in [
        "from_entry",
        "from_static",
        "from_global",
        "from_callback",
        "from_assertion",
        "from_another_declaration",
        "from_tail_call",
    ] {
        let throws = || xdp("throws", function);
        let name = function.replace('_', "-");
        let last = xdp("void_context", "wide");
        for members in [
            vec![throws()],
            vec![throws(), good(), last.clone()],
            vec![good(), throws(), last.clone()],
            vec![good(), last.clone(), throws()],
        ] {
            let refusal = refused(Hook::Xdp, members, Some(&name));
            assert!(refusal.reason.contains("bpf_throw"), "{}", refusal.reason);
            assert!(refusal.remedy.contains("return the verdict"), "{}", refusal.remedy);
        }
    }
    let chains = Chains::new();
    chains.load(Hook::Xdp, 1, vec![good(), xdp("throws", "throws_nothing")]);
    assert_eq!(chains.run(Hook::Xdp, 1, &packet(&[])).retval, 2);
}

#[test]
fn programs_of_other_types_are_refused_by_their_section() {
    let _turn = turn();
    for (function, part) in [
        ("on_switch", "tracepoint/sched/sched_switch"),
        ("on_unlink", "kprobe/do_unlinkat"),
        ("on_entry", "fentry/do_unlinkat"),
        ("on_open", "lsm/file_open"),
        ("on_group", "cgroup/skb"),
        ("on_stream", "sk_skb/stream_verdict"),
        ("on_socket", "socket"),
        ("on_enter", "raw_tp/sys_enter"),
        ("on_devmap", "xdp/devmap"),
        ("on_cpumap", "xdp.frags/cpumap"),
        ("on_tc", "\"tc\""),
        ("by_context", "bpf_raw_tracepoint_args"),
    ] {
        let name = function.replace('_', "-");
        let refusal = refused(Hook::Xdp, vec![good(), xdp("other_types", function)], Some(&name));
        assert!(refusal.reason.contains(part), "{}", refusal.reason);
        assert!(refusal.reason.contains("declares it for xdp"), "{}", refusal.reason);
        assert!(refusal.remedy.contains("manifest"), "{}", refusal.remedy);
    }
    let tc = |function: &str| member("m", Hook::TcEgress, &object("other_types"), function);
    for function in ["on_xdp", "on_devmap", "on_group", "on_switch"] {
        refused(Hook::TcEgress, vec![tc(function)], Some("m"));
    }

    let chains = Chains::new();
    let loaded = |members| chains.load(Hook::Xdp, 1, members).notes;
    for (function, notes) in [("on_xdp", 0), ("by_manifest", 0), ("doubtful", 1)] {
        let notes_of_it = loaded(vec![xdp("other_types", function)]);
        assert_eq!(notes_of_it.len(), notes, "{function}: {notes_of_it:?}");
    }
    Chains::new().load(Hook::TcEgress, 1, vec![tc("on_tc")]);
}

#[test]
fn device_bound_programs_are_refused_as_such() {
    let _turn = turn();
    let refusal =
        refused(Hook::Xdp, vec![good(), xdp("device_bound", "device_bound")], Some("device-bound"));
    assert!(refusal.reason.contains("bound to one device"), "{}", refusal.reason);
    assert!(!refusal.remedy.contains("correct"), "{}", refusal.remedy);
}

#[test]
fn a_member_nobody_would_reach() {
    let _turn = turn();
    let ends = Member { proceed_on: VerdictSet::from_bits(0), ..good() };
    let refusal = refused(Hook::Xdp, vec![ends, xdp("void_context", "wide")], Some("untyped"));
    assert!(refusal.reason.contains("\"wide\""), "{}", refusal.reason);
}

#[test]
fn settings_that_do_not_fit_the_object() {
    let _turn = turn();
    let base = || xdp("entries", "entries");
    let sized = || Member { max_entries: vec![("allowed".into(), 2)], ..base() };
    let contents = |map: &str, key: usize, count: u8| {
        let entries = (0..count).map(|i| (vec![i; key], vec![0; 4])).collect();
        vec![MapContents { map: map.into(), entries }]
    };
    for (member, part) in [
        (Member { function: "missing".into(), ..sized() }, "\"missing\""),
        (base(), "number of entries"),
        (Member { max_entries: vec![("nothing".into(), 2)], ..base() }, "\"nothing\""),
        (Member { globals: vec![("packets".into(), vec![0; 4])], ..sized() }, "8 bytes"),
        (Member { globals: vec![("nothing".into(), vec![0; 4])], ..sized() }, "\"nothing\""),
        (Member { map_entries: contents("nothing", 2, 1), ..sized() }, "\"nothing\""),
        (Member { map_entries: contents("allowed", 3, 1), ..sized() }, "2 bytes"),
        (Member { map_entries: contents("allowed", 2, 100), ..sized() }, "more"),
        (
            Member {
                shared_maps: vec![SharedMap { map: "nothing".into(), scope: ShareScope::Host }],
                ..sized()
            },
            "\"nothing\"",
        ),
    ] {
        let refusal = refused(Hook::Xdp, vec![good(), member], Some("entries"));
        assert!(refusal.reason.contains(part), "{} should say {part}", refusal.reason);
    }
}

#[test]
fn a_shared_map_of_another_shape() {
    let _turn = turn();
    let sharing = |name: &str, entries: u32| Member {
        name: name.parse().unwrap(),
        max_entries: vec![("allowed".into(), entries)],
        shared_maps: vec![SharedMap { map: "allowed".into(), scope: ShareScope::Host }],
        ..xdp("entries", "entries")
    };
    let refusal = refused(Hook::Xdp, vec![sharing("a", 4), sharing("b", 8)], Some("b"));
    assert!(refusal.reason.contains("number of entries"), "{}", refusal.reason);
}

#[test]
fn a_program_of_the_other_hook() {
    let _turn = turn();
    // It reads fields an XDP context does not have.
    let tc = member("block", Hook::Xdp, &object("tc_lpm"), "block");
    refused(Hook::Xdp, vec![tc], Some("block"));
}

#[test]
fn a_member_for_small_packets_on_a_jumbo_interface() {
    let _turn = turn();
    let chains = Chains::new();
    let native = |members| {
        // Loopback has an MTU of 65536.
        let key = Chains::key(Hook::Xdp);
        chains.kernel.prepare(&ChainBuild {
            key,
            generation: 1,
            xdp_mode: XdpMode::Native,
            tc_mode: TcMode::Best,
            members,
            together: Vec::new(),
            left_entries: Vec::new(),
        })
    };
    let large = Member { frags: true, ..xdp("xdp_frags", "measure") };
    let error = native(vec![large.clone(), good()]).unwrap_err();
    let KernelError::Refused { member, reason, remedy, .. } = error else { panic!("{error:?}") };
    assert_eq!(member, Some(good().name));
    assert!(reason.contains("multi-buffer") && remedy.contains("xdp_mode"), "{reason}; {remedy}");
    assert!(remedy.contains("frags: true"), "{remedy}");
    assert_eq!(chains.paths().len(), 0);
    native(vec![large]).unwrap();
    // Its section says it too.
    chains.kernel.discard(&Chains::key(Hook::Xdp), 1).unwrap();
    native(vec![xdp("xdp_frags", "measure")]).unwrap();
}

#[test]
fn bytes_that_are_no_object() {
    let _turn = turn();
    for bytes in [&b""[..], b"\x7fELF", b"not an object at all", &[0; 4096]] {
        let member = Member { object: Arc::from(bytes), ..good() };
        refused(Hook::Xdp, vec![member], Some("untyped"));
    }
    // An ELF file for another machine: this very test.
    let own = fs::read(std::env::current_exe().unwrap()).unwrap();
    let refusal =
        refused(Hook::Xdp, vec![Member { object: own.into(), ..good() }], Some("untyped"));
    assert!(refusal.reason.contains("eBPF"), "{}", refusal.reason);
}

#[test]
fn truncated_and_scribbled_objects_are_refused_or_load_but_never_panic() {
    let _turn = turn();
    let mut noise = 9u64;
    let mut below = |limit: usize| {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(noise >> 33).unwrap() % limit
    };
    for name in ["core", "map_in_map", "tail_calls", "data_sections", "legacy_maps"] {
        let whole = object(name);
        let hook = if name == "core" { Hook::TcIngress } else { Hook::Xdp };
        let function = match name {
            "map_in_map" => "nested",
            "legacy_maps" => "old",
            other => other,
        };
        let chains = Chains::new();
        let before = held();
        for round in 0..60 {
            let mut bytes = whole.to_vec();
            if round % 3 == 0 {
                bytes.truncate(below(bytes.len()));
            } else {
                for _ in 0..=below(6) {
                    let at = below(bytes.len());
                    bytes[at] = u8::try_from(below(256)).unwrap();
                }
            }
            let member = member("scribbled", hook, &Arc::from(bytes), function);
            match chains.prepare(hook, round + 1, vec![member]) {
                Ok(_) => chains.kernel.discard(&Chains::key(hook), round + 1).unwrap(),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
            assert_eq!(held(), before, "kernel objects are left");
        }
    }
}
