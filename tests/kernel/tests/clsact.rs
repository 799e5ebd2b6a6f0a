//! TC chains attached by a filter of a clsact qdisc, judged by packets, by `tc` and by `bpftool`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use canopy_api::{Hook, TcMode, XdpMode, wire::ObservedChain};
use canopy_kernel::{ChainBuild, Expect, Kernel as _, KernelError, LinkState};
use canopy_kernel_aya::{AyaKernel, sys};
use canopy_kernel_tests::live::{Live, PORT, dropper, in_netns, pass_and_drop};
use canopy_test_support::{
    old_kernel,
    pair::{HOST_IP, HOST_LINK, PEER_IP},
    traffic::{Echo, ping, udp_replies},
};
use std::fs;

/// How `tc filter show` begins the line of our filter.
const OURS: &str = "filter protocol all pref 1 bpf chain 0 handle 0xca09";

fn direction(hook: Hook) -> &'static str {
    if hook == Hook::TcEgress { "egress" } else { "ingress" }
}

/// `tc`, with a command line of words.
fn tc(live: &Live, words: &str) -> String {
    live.exec(&["tc"].into_iter().chain(words.split(' ')).collect::<Vec<_>>())
}

fn filters(live: &Live, hook: Hook) -> String {
    tc(live, &format!("filter show dev {HOST_LINK} {}", direction(hook)))
}

fn qdiscs(live: &Live) -> String {
    tc(live, &format!("qdisc show dev {HOST_LINK}"))
}

/// Generation 1, which drops UDP to [`PORT`], by a filter.
fn attach(live: &Live, hook: Hook) -> ObservedChain {
    let key = Live::key(hook);
    live.prepare_for(TcMode::Clsact, &key, 1, vec![dropper("drop", hook, PORT)]);
    live.switch(&key, 1, Expect::Nothing).unwrap()
}

/// Replies that come back to the host from the peer, past the chain on `hook`.
fn replies(live: &Live, hook: Hook) -> u32 {
    match hook {
        Hook::TcEgress => {
            let _echo = Echo::start(&live.pair.peer, PEER_IP, PORT).unwrap();
            udp_replies(&live.pair.host, PEER_IP, PORT, 3).unwrap()
        }
        Hook::Xdp | Hook::TcIngress => {
            let _echo = Echo::start(&live.pair.host, HOST_IP, PORT).unwrap();
            udp_replies(&live.pair.peer, HOST_IP, PORT, 3).unwrap()
        }
    }
}

fn conflict(error: KernelError) -> (String, String) {
    match error {
        KernelError::Conflict { what, remedy } => (what, remedy),
        other => panic!("{other:?}"),
    }
}

/// A foreign TC program that returns one code, pinned for `tc`.
fn foreign(live: &Live, code: u8) -> (u32, String) {
    let insns = [0xb7, 0, 0, 0, code, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    let prog = sys::prog_load(&sys::ProgLoad::new(3, &insns, "GPL", "somebody_else")).unwrap();
    let id = sys::prog_info(&prog).unwrap().id;
    // '@' is in no interface's escaped name: no chain's directory.
    let path = live.bpffs.path().join(format!("@foreign-{id}"));
    sys::obj_pin(&prog, &path).unwrap();
    (id, path.to_str().unwrap().to_owned())
}

#[test]
fn a_filter_drops_and_is_seen_by_tc_and_bpftool() {
    for hook in [Hook::TcIngress, Hook::TcEgress] {
        let live = Live::new();
        assert_eq!(replies(&live, hook), 3);
        let chain = attach(&live, hook);
        assert_eq!(replies(&live, hook), 0, "{hook}");
        assert_eq!((chain.mode.as_str(), chain.generation, chain.link_id), ("clsact", 1, 0));
        assert_eq!(live.state(), LinkState::Attached(chain.clone()));

        let listed = filters(&live, hook);
        let shown = listed.lines().find(|line| line.starts_with(OURS) && line.contains("id"));
        let shown = shown.unwrap_or_else(|| panic!("{listed}"));
        assert!(shown.contains("direct-action"), "{shown}");
        assert!(shown.contains(&format!("id {} ", chain.program_id)), "{shown}");
        let other = if hook == Hook::TcEgress { Hook::TcIngress } else { Hook::TcEgress };
        assert_eq!(filters(&live, other), "");
        let net = live.exec(&["bpftool", "net", "show", "dev", HOST_LINK]);
        let clsact = format!("clsact/{} canopy_tc", direction(hook));
        assert!(net.contains(&clsact) && net.contains(&chain.program_id.to_string()), "{net}");
        // Not on TCX as well.
        let tcx =
            live.kernel(|_| Ok(sys::tcx_query(chain.ifindex, hook == Hook::TcEgress).unwrap()));
        assert_eq!(tcx.unwrap(), []);

        live.kernel.settle().unwrap();
        let (_, drop) = pass_and_drop(hook);
        assert_eq!(live.cells(&Live::key(hook), 1)[0].exits[drop], 3, "every packet is counted");
    }
}

#[test]
fn a_kernel_without_tcx_gets_filters_by_itself() {
    let live = Live::new();
    let key = Live::key(Hook::TcIngress);
    let build = |tc_mode, generation| ChainBuild {
        key: key.clone(),
        generation,
        xdp_mode: XdpMode::Best,
        tc_mode,
        members: vec![dropper("drop", Hook::TcIngress, PORT)],
        together: Vec::new(),
        left_entries: Vec::new(),
    };
    let on_old = |call: &(dyn Fn(&AyaKernel) -> Result<String, KernelError> + Sync)| {
        live.kernel(|kernel| {
            old_kernel::without_tcx().unwrap();
            call(kernel)
        })
    };
    let error = on_old(&|kernel| {
        kernel.prepare(&build(TcMode::Tcx, 1)).map(|prepared| prepared.notes.concat())
    });
    let error = error.unwrap_err();
    assert!(matches!(&error, KernelError::Unsupported { remedy, .. } if remedy.contains("clsact")));
    let notes = on_old(&|kernel| {
        kernel.prepare(&build(TcMode::Best, 1)).map(|prepared| prepared.notes.concat())
    });
    assert!(notes.unwrap().contains("no TCX links"));
    let mode = on_old(&|kernel| {
        kernel.switch(&key, 1, XdpMode::Best, Expect::Nothing).map(|chain| chain.mode)
    });
    assert_eq!(mode.unwrap(), "clsact");
    assert_eq!(ping(&live.pair, 2).unwrap(), 0);
    // Observed there too, and by a kernel that has both.
    let state = on_old(&|kernel| Ok(format!("{:?}", kernel.observe()?)));
    assert!(state.unwrap().contains("Attached"));
    assert!(matches!(live.state(), LinkState::Attached(_)));
    // Where there is TCX, that is the best.
    live.prepare(&key, 2, vec![dropper("drop", Hook::TcIngress, PORT)]);
    assert_eq!(live.switch(&key, 2, Expect::Generation(1)).unwrap().mode, "tcx");
    assert_eq!(filters(&live, Hook::TcIngress), "");
}

#[test]
fn a_filter_removed_by_hand_is_seen_and_put_back() {
    for removal in [
        format!("filter del dev {HOST_LINK} ingress pref 1"),
        format!("filter del dev {HOST_LINK} ingress"),
        format!("qdisc del dev {HOST_LINK} clsact"),
    ] {
        let live = Live::new();
        let key = Live::key(Hook::TcIngress);
        let chain = attach(&live, Hook::TcIngress);
        tc(&live, &removal);
        assert_eq!(ping(&live.pair, 2).unwrap(), 2, "{removal}");
        assert_eq!(live.state(), LinkState::Detached);
        let (what, _) = conflict(live.switch(&key, 1, Expect::Generation(1)).unwrap_err());
        assert!(what.contains("nothing of ours is attached"), "{what}");
        let again = live.switch(&key, 1, Expect::Nothing).unwrap();
        assert_eq!(again, chain);
        assert_eq!(ping(&live.pair, 2).unwrap(), 0, "{removal}: restored");
    }
}

#[test]
fn a_program_put_in_our_place_is_seen_and_replaced() {
    let live = Live::new();
    let key = Live::key(Hook::TcIngress);
    let chain = attach(&live, Hook::TcIngress);
    let (id, pin) = foreign(&live, 0);
    // As ours has it: the kernel does not exchange filters with other such flags.
    tc(
        &live,
        &format!(
            "filter replace dev {HOST_LINK} ingress pref 1 handle 0xca09 bpf da skip_hw object-pinned {pin}"
        ),
    );
    assert_eq!(ping(&live.pair, 2).unwrap(), 2);
    assert_eq!(live.state(), LinkState::Replaced { program_id: id });
    live.prepare_for(TcMode::Clsact, &key, 2, vec![dropper("drop", Hook::TcIngress, PORT)]);
    let (what, _) = conflict(live.switch(&key, 2, Expect::Generation(1)).unwrap_err());
    assert!(what.contains("another program"), "{what}");
    assert_eq!(live.state(), LinkState::Replaced { program_id: id });
    assert_eq!(live.switch(&key, 1, Expect::Anything).unwrap(), chain);
    assert_eq!(ping(&live.pair, 2).unwrap(), 0);

    let place = format!("dev {HOST_LINK} ingress pref 1");
    tc(&live, &format!("filter del {place}"));
    tc(&live, &format!("filter add {place} handle 0xca09 bpf da object-pinned {pin}"));
    assert_eq!(live.state(), LinkState::Replaced { program_id: id });
    assert_eq!(live.switch(&key, 1, Expect::Anything).unwrap(), chain);
    assert_eq!(ping(&live.pair, 2).unwrap(), 0);
}

#[test]
fn a_swap_of_filters_against_the_wrong_generation_changes_nothing() {
    let live = Live::new();
    let key = Live::key(Hook::TcIngress);
    let chain = attach(&live, Hook::TcIngress);
    for generation in [2, 3] {
        let members = vec![dropper("drop", Hook::TcIngress, 9)];
        live.prepare_for(TcMode::Clsact, &key, generation, members);
    }
    let (what, _) = conflict(live.switch(&key, 3, Expect::Generation(2)).unwrap_err());
    assert!(what.contains("another program"), "{what}");
    let (what, _) = conflict(live.switch(&key, 3, Expect::Nothing).unwrap_err());
    assert!(what.contains("attached there already"), "{what}");
    assert_eq!(live.state(), LinkState::Attached(chain));
    assert_eq!(live.switch(&key, 3, Expect::Generation(1)).unwrap().generation, 3);
    assert_eq!(ping(&live.pair, 2).unwrap(), 2);
}

#[test]
fn filters_of_others_stay_and_run_behind_ours() {
    const SHOT: u8 = 2;
    let live = Live::new();
    let key = Live::key(Hook::TcIngress);
    let (id, pin) = foreign(&live, SHOT);
    // Theirs was there first, in a qdisc of theirs.
    tc(&live, &format!("qdisc add dev {HOST_LINK} clsact"));
    tc(&live, &format!("filter add dev {HOST_LINK} ingress pref 10 bpf da object-pinned {pin}"));
    assert_eq!(ping(&live.pair, 2).unwrap(), 0, "theirs drops everything");
    attach(&live, Hook::TcIngress);
    assert_eq!(ping(&live.pair, 2).unwrap(), 0);
    live.kernel.settle().unwrap();
    let (pass, drop) = pass_and_drop(Hook::TcIngress);
    let ours = &live.cells(&key, 1)[0];
    assert_eq!((ours.exits[pass], ours.exits[drop]), (0, 2), "ours drops what it drops first");
    // What ours lets pass, theirs still gets.
    let _echo = Echo::start(&live.pair.host, HOST_IP, 9).unwrap();
    let passes = || udp_replies(&live.pair.peer, HOST_IP, 9, 2).unwrap();
    assert_eq!(passes(), 0, "bypassed theirs");
    live.kernel.settle().unwrap();
    assert_eq!(live.cells(&key, 1)[0].exits[pass], 2);

    live.kernel(|kernel| kernel.detach(&key)).unwrap();
    let left = filters(&live, Hook::TcIngress);
    assert!(left.contains(&format!("id {id} ")) && !left.contains("0xca09"), "{left}");
    assert!(qdiscs(&live).contains("clsact"), "their qdisc is not ours to remove");
    tc(&live, &format!("filter del dev {HOST_LINK} ingress pref 10"));
    assert_eq!(passes(), 2);
}

#[test]
fn a_priority_or_a_qdisc_of_others_in_the_way_is_named() {
    let live = Live::new();
    let key = Live::key(Hook::TcIngress);
    let (_, pin) = foreign(&live, 0);
    live.prepare_for(TcMode::Clsact, &key, 1, vec![dropper("drop", Hook::TcIngress, PORT)]);
    let refused = || conflict(live.switch(&key, 1, Expect::Nothing).unwrap_err());

    tc(&live, &format!("qdisc add dev {HOST_LINK} ingress"));
    let (what, remedy) = refused();
    assert!(what.contains("qdisc \"ingress\""), "{what}");
    assert!(remedy.contains(&format!("tc qdisc del dev {HOST_LINK} ingress")), "{remedy}");
    tc(&live, &format!("qdisc del dev {HOST_LINK} ingress"));

    tc(&live, &format!("qdisc add dev {HOST_LINK} clsact"));
    tc(
        &live,
        &format!(
            "filter add dev {HOST_LINK} ingress pref 1 protocol ip bpf da object-pinned {pin}"
        ),
    );
    let (what, remedy) = refused();
    assert!(what.contains("\"bpf\" filter of another has priority 1"), "{what}");
    assert!(remedy.contains("tc_mode"), "{remedy}");
    tc(&live, &format!("filter del dev {HOST_LINK} ingress"));
    live.switch(&key, 1, Expect::Nothing).unwrap();
}

#[test]
fn a_removed_chain_leaves_no_filter_and_no_qdisc_of_ours() {
    let live = Live::new();
    attach(&live, Hook::TcIngress);
    attach(&live, Hook::TcEgress);
    let remove = |hook| live.kernel(|kernel| kernel.detach(&Live::key(hook))).unwrap();
    remove(Hook::TcIngress);
    assert_eq!(filters(&live, Hook::TcIngress), "");
    assert!(filters(&live, Hook::TcEgress).contains(OURS), "the other hook keeps its own");
    assert_eq!(ping(&live.pair, 2).unwrap(), 2);
    remove(Hook::TcEgress);
    assert!(!qdiscs(&live).contains("clsact"), "{}", qdiscs(&live));
    remove(Hook::TcEgress);
    for hook in [Hook::TcIngress, Hook::TcEgress] {
        live.kernel(|kernel| kernel.discard(&Live::key(hook), 1)).unwrap();
    }
    assert_eq!(live.observe(), []);
    assert_eq!(fs::read_dir(live.bpffs.path()).unwrap().count(), 0, "pins are left");
}

#[test]
fn an_interface_that_goes_takes_the_note_of_its_qdisc_along() {
    let live = Live::new();
    let key = Live::key(Hook::TcIngress);
    attach(&live, Hook::TcIngress);
    live.exec(&["ip", "link", "delete", HOST_LINK]);
    assert_eq!(live.state(), LinkState::InterfaceMissing);
    live.kernel(|kernel| kernel.detach(&key)).unwrap();
    live.kernel(|kernel| kernel.discard(&key, 1)).unwrap();
    assert_eq!(fs::read_dir(live.bpffs.path()).unwrap().count(), 0, "something is left");
}

#[test]
fn a_new_process_finds_the_filter_as_it_was() {
    let live = Live::new();
    let key = Live::key(Hook::TcIngress);
    let chain = attach(&live, Hook::TcIngress);
    let Live { kernel, bpffs, pair } = live;
    drop(kernel);
    assert_eq!(ping(&pair, 2).unwrap(), 0, "the datapath does not notice");
    let live = Live { kernel: AyaKernel::new(bpffs.path()).unwrap(), bpffs, pair };
    assert_eq!(live.state(), LinkState::Attached(chain));
    live.prepare_for(TcMode::Clsact, &key, 2, vec![dropper("drop", Hook::TcIngress, PORT)]);
    live.switch(&key, 2, Expect::Generation(1)).unwrap();
    assert_eq!(ping(&live.pair, 2).unwrap(), 0);
}

#[test]
fn a_filter_whose_pins_are_gone_is_kept_or_taken_over() {
    let live = Live::new();
    let key = Live::key(Hook::TcIngress);
    let chain = attach(&live, Hook::TcIngress);
    // Whoever holds it pins it again.
    assert_eq!(live.state(), LinkState::Attached(chain.clone()));
    fs::remove_dir_all(live.kernel.pins().chain(&key)).unwrap();
    assert_eq!(live.state(), LinkState::Attached(chain));
    assert!(live.kernel.pins().prog(&key, 1).exists());

    // Nobody held it: the next generation takes its place, without a gap.
    let Live { kernel, bpffs, pair } = live;
    drop(kernel);
    fs::remove_dir_all(bpffs.path().join(HOST_LINK)).unwrap();
    let live = Live { kernel: AyaKernel::new(bpffs.path()).unwrap(), bpffs, pair };
    assert_eq!(live.observe(), []);
    assert_eq!(ping(&live.pair, 2).unwrap(), 0);
    live.prepare_for(TcMode::Clsact, &key, 2, vec![dropper("drop", Hook::TcIngress, PORT)]);
    let next = live.switch(&key, 2, Expect::Nothing).unwrap();
    assert_eq!(filters(&live, Hook::TcIngress).matches("direct-action").count(), 1);
    assert_eq!(live.state(), LinkState::Attached(next));
}

#[test]
fn a_chain_moves_between_tcx_and_clsact_and_never_is_nowhere() {
    let live = Live::new();
    let key = Live::key(Hook::TcIngress);
    let prepare = |mode, generation| {
        live.prepare_for(mode, &key, generation, vec![dropper("drop", Hook::TcIngress, PORT)]);
    };
    prepare(TcMode::Tcx, 1);
    let tcx = live.switch(&key, 1, Expect::Nothing).unwrap();
    prepare(TcMode::Clsact, 2);
    let moved = live.switch(&key, 2, Expect::Generation(1)).unwrap();
    assert_eq!((tcx.mode.as_str(), moved.mode.as_str()), ("tcx", "clsact"));
    let on_tcx = || live.kernel(|_| Ok(sys::tcx_query(moved.ifindex, false).unwrap())).unwrap();
    assert_eq!(on_tcx(), []);
    assert_eq!(ping(&live.pair, 2).unwrap(), 0);
    let back = live.switch(&key, 1, Expect::Generation(2)).unwrap();
    assert_eq!((back.mode.as_str(), on_tcx().len()), ("tcx", 1));
    assert!(!qdiscs(&live).contains("clsact"));
    assert_eq!(ping(&live.pair, 2).unwrap(), 0);

    // A move that was cut short leaves both; it is seen, and the next switch completes it.
    let link = sys::obj_get(&live.kernel.pins().link(&key)).unwrap();
    let Live { kernel, bpffs, pair } = live;
    drop(kernel);
    fs::remove_file(AyaKernel::new(bpffs.path()).unwrap().pins().link(&key)).unwrap();
    let kernel = AyaKernel::new(bpffs.path()).unwrap();
    in_netns(&pair.host, || kernel.switch(&key, 2, XdpMode::Best, Expect::Nothing)).unwrap();
    sys::obj_pin(&link, &kernel.pins().link(&key)).unwrap();
    let live = Live { kernel, bpffs, pair };
    assert!(matches!(live.state(), LinkState::Replaced { .. }), "{:?}", live.state());
    assert_eq!(live.switch(&key, 1, Expect::Anything).unwrap().mode, "tcx");
    assert_eq!(filters(&live, Hook::TcIngress), "");
    assert!(matches!(live.state(), LinkState::Attached(_)));
}
