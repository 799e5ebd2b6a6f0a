//! Attached is not reached: who stands before a chain, and what the device drops of what a chain sends.
//! Judged by packets and by foreign tools.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use canopy_api::{
    ChainKey, Hook, TcMode,
    wire::{ChainPlacement, FilterPosition, ForeignProgram, ObservedChain},
};
use canopy_kernel::{Expect, Kernel as _};
use canopy_kernel_aya::sys::{self, LinkOrder, LinkTarget};
use canopy_kernel_tests::{
    chain::{member, object},
    live::{Live, PORT, dropper, in_netns},
};
use canopy_test_support::{
    packet::Udp4,
    pair::{HOST_LINK, PEER_LINK},
    traffic::{ping, send_frames},
};
use std::os::fd::OwnedFd;

/// A foreign program that returns one code.
fn foreign(prog_type: u32, code: u8) -> OwnedFd {
    let insns = [0xb7, 0, 0, 0, code, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    let prog = sys::ProgLoad {
        expected_attach_type: if prog_type == 6 { 37 } else { 0 },
        ..sys::ProgLoad::new(prog_type, &insns, "GPL", "somebody_else")
    };
    sys::prog_load(&prog).unwrap()
}

fn placement(live: &Live, key: &ChainKey, chain: &ObservedChain) -> ChainPlacement {
    live.kernel(|kernel| kernel.placement(key, chain)).unwrap().unwrap()
}

/// Puts a foreign program on a TCX hook, before all that are there.
fn before(live: &Live, hook: Hook, index: u32, prog: &OwnedFd) -> OwnedFd {
    let target = match hook {
        Hook::TcEgress => LinkTarget::TcxEgress(LinkOrder::First),
        Hook::Xdp | Hook::TcIngress => LinkTarget::TcxIngress(LinkOrder::First),
    };
    live.kernel(|_| Ok(sys::link_create(prog, index, target).unwrap())).unwrap()
}

#[test]
fn a_tcx_program_before_the_chain_is_told_with_its_link() {
    for hook in [Hook::TcIngress, Hook::TcEgress] {
        let live = Live::new();
        let key = Live::key(hook);
        let chain = live.attach(hook, vec![dropper("drop", hook, PORT)]);
        let alone = placement(&live, &key, &chain);
        assert_eq!((alone.position, alone.programs, alone.before.len()), (0, 1, 0));
        let seen = |live: &Live| {
            live.kernel.settle().unwrap();
            live.cells(&key, 1)[0].runs()
        };
        ping(&live.pair, 2).unwrap();
        assert!(seen(&live) > 0, "{hook}");

        let prog = foreign(3, 0);
        let link = before(&live, hook, chain.ifindex, &prog);
        let told = placement(&live, &key, &chain);
        let info = sys::prog_info(&prog).unwrap();
        let wanted = ForeignProgram {
            attached: "tcx".to_owned(),
            program_id: info.id,
            name: Some("somebody_else".to_owned()),
            tag: Some(info.tag),
            program_type: Some("sched_cls".to_owned()),
            link_id: Some(sys::link_info(&link).unwrap().id),
            filter: None,
        };
        assert_eq!(told.before, [wanted], "{hook}");
        assert_eq!((told.position, told.programs), (1, 2));
        assert!(told.revision > alone.revision, "{told:?} {alone:?}");
        // It is told because of this: no packet reaches the chain.
        let count = seen(&live);
        ping(&live.pair, 2).unwrap();
        assert_eq!(seen(&live), count, "{hook}");

        // By itself a descriptor may live on for a moment in a process that is being made.
        sys::link_detach(&link).unwrap();
        assert_eq!(placement(&live, &key, &chain).before, []);
        // Behind the chain it is nobody's business.
        let target = match hook {
            Hook::TcEgress => LinkTarget::TcxEgress(LinkOrder::Last),
            Hook::Xdp | Hook::TcIngress => LinkTarget::TcxIngress(LinkOrder::Last),
        };
        let _behind =
            live.kernel(|_| Ok(sys::link_create(&prog, chain.ifindex, target).unwrap())).unwrap();
        let last = placement(&live, &key, &chain);
        assert_eq!((last.position, last.programs, last.before.len()), (0, 2, 0));
    }
}

#[test]
fn a_clsact_chain_tells_tcx_programs_and_earlier_filters() {
    let live = Live::new();
    let key = Live::key(Hook::TcIngress);
    live.prepare_for(TcMode::Clsact, &key, 1, vec![dropper("drop", Hook::TcIngress, PORT)]);
    let chain = live.switch(&key, 1, Expect::Nothing).unwrap();
    assert_eq!(placement(&live, &key, &chain).before, []);

    // Of the same priority and later, so that it runs first; and one behind.
    let (first, last) = (foreign(3, 255), foreign(3, 2));
    for (prog, pref) in [(&first, "1"), (&last, "9")] {
        let pin = live.bpffs.path().join(format!("@foreign-{pref}"));
        sys::obj_pin(prog, &pin).unwrap();
        let pin = pin.to_str().unwrap().to_owned();
        live.exec(&[
            "tc",
            "filter",
            "add",
            "dev",
            HOST_LINK,
            "ingress",
            "pref",
            pref,
            "bpf",
            "da",
            "object-pinned",
            &pin,
        ]);
    }
    let tcx = foreign(3, 255);
    let _link = before(&live, Hook::TcIngress, chain.ifindex, &tcx);
    let told = placement(&live, &key, &chain);
    let id = |prog: &OwnedFd| sys::prog_info(prog).unwrap().id;
    let ids: Vec<_> =
        told.before.iter().map(|one| (one.attached.as_str(), one.program_id)).collect();
    assert_eq!(ids, [("tcx", id(&tcx)), ("clsact", id(&first))]);
    assert_eq!((told.position, told.programs), (1, 3));
    assert!(
        matches!(told.before[1].filter, Some(FilterPosition { priority: 1, handle }) if handle != 0),
        "{told:?}"
    );
}

#[test]
fn a_foreign_xdp_program_is_told_of_ingress_and_ours_is_not() {
    let live = Live::new();
    let ingress = live.attach(Hook::TcIngress, vec![dropper("drop", Hook::TcIngress, 9)]);
    let egress = live.attach(Hook::TcEgress, vec![dropper("drop", Hook::TcEgress, 9)]);
    let of = |hook, chain: &ObservedChain| placement(&live, &Live::key(hook), chain).before;
    let prog = foreign(6, 2);
    let link = live
        .kernel(|_| Ok(sys::link_create(&prog, ingress.ifindex, LinkTarget::XdpNative).unwrap()))
        .unwrap();
    let told = of(Hook::TcIngress, &ingress);
    let names: Vec<_> =
        told.iter().map(|one| (one.attached.as_str(), one.name.as_deref())).collect();
    assert_eq!(names, [("xdp-native", Some("somebody_else"))]);
    assert_eq!(of(Hook::TcEgress, &egress), []);
    sys::link_detach(&link).unwrap();
    // A chain before a chain is as it was meant.
    let ours = live.attach(Hook::Xdp, vec![dropper("drop", Hook::Xdp, 9)]);
    assert_eq!(of(Hook::TcIngress, &ingress), []);
    assert_eq!(of(Hook::Xdp, &ours), []);
}

/// What `ethtool -S` would show.
fn lost(live: &Live) -> u64 {
    let told = live.kernel(|kernel| kernel.device_errors(&Live::key(Hook::Xdp))).unwrap();
    told.get("rx_xdp_tx_errors").copied().unwrap_or(0)
}

#[test]
fn packets_that_xdp_sends_and_the_device_drops_are_told() {
    let live = Live::new();
    let key = Live::key(Hook::Xdp);
    let frames = vec![Udp4::to_port(PORT).frame(); 20];
    live.prepare(&key, 1, vec![member("bounce", Hook::Xdp, &object("bounce"), "bounce")]);
    let chain = live.switch(&key, 1, Expect::Nothing).unwrap();
    assert_eq!(chain.mode, "native");
    assert_eq!(lost(&live), 0);
    // The other end has neither XDP nor GRO: it takes no frames that XDP sends.
    send_frames(&live.pair, &frames).unwrap();
    let told = lost(&live);
    assert!(told >= 20, "{told}");
    live.kernel.settle().unwrap();
    assert!(live.cells(&key, 1)[0].runs() >= 20);

    // What was counted before a chain was attached is not its doing.
    live.kernel(|kernel| kernel.detach(&key)).unwrap();
    live.switch(&key, 1, Expect::Nothing).unwrap();
    assert_eq!(lost(&live), 0);
    // Nor is what a redirect loses delivered.
    live.prepare(&key, 2, vec![member("away", Hook::Xdp, &object("bounce"), "to_loopback")]);
    live.switch(&key, 2, Expect::Generation(1)).unwrap();
    send_frames(&live.pair, &frames).unwrap();
    let told = live.kernel(|kernel| kernel.device_errors(&key)).unwrap();
    assert!(told["rx_drops"] >= 20, "{told:?}");
    live.switch(&key, 1, Expect::Generation(2)).unwrap();

    // An end that runs XDP takes them: none is lost.
    let pass = foreign(6, 2);
    let _link = in_netns(&live.pair.peer, || {
        let index = nix::net::if_::if_nametoindex(PEER_LINK).unwrap();
        Ok(sys::link_create(&pass, index, LinkTarget::XdpNative).unwrap())
    })
    .unwrap();
    send_frames(&live.pair, &frames).unwrap();
    assert_eq!(lost(&live), 0);
}
