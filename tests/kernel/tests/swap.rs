//! A change of a chain is atomic: under a flood, no packet meets neither the old chain nor the new
//! one.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use canopy_api::{Hook, TcMode, XdpMode};
use canopy_kernel::{Expect, Kernel as _, Member};
use canopy_kernel_tests::{
    chain::{member, object},
    live::{Live, dropper, pass_and_drop},
};
use canopy_test_support::{
    packet::Udp4,
    pair::{HOST_IP, PEER_LINK, udp_counter},
    traffic::{Flood, send_frames},
    wait_for,
};
use std::{
    net::UdpSocket,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// What every generation drops. Nobody listens there: each packet that gets through counts as
/// `NoPorts`.
const FORBIDDEN: u16 = 7;
/// What every generation lets through, to a socket that nobody reads: what does not fit into it
/// counts as `RcvbufErrors`.
const ALLOWED: u16 = 9;

/// Passes everything.
fn passer(name: &str, hook: Hook) -> Member {
    let function = if hook == Hook::Xdp { "xdp_drop_port" } else { "tc_drop_port" };
    // Port 0 is no port.
    Member { ..member(name, hook, &object("drop_port"), function) }
}

fn udp(live: &Live, counter: &str) -> u64 {
    live.pair.host.run(|| udp_counter(counter)).unwrap()
}

/// `swaps` changes from one chain to another under a flood.
fn swaps_leak_nothing(hook: Hook, (mode, tc): (XdpMode, TcMode), swaps: u64, at_least: u64) {
    // One flood at a time: they would starve each other of the CPUs.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let live = Live::new();
    let key = Live::key(hook);
    let (_, drop) = pass_and_drop(hook);
    let keep = dropper("drop", hook, FORBIDDEN);
    let versions: [Vec<Member>; 4] = [
        vec![keep.clone()],
        vec![passer("first", hook), keep.clone()],
        vec![keep.clone(), passer("last", hook)],
        vec![passer("first", hook), passer("second", hook), keep, passer("last", hook)],
    ];
    let versions = (1..).zip(versions).map(|(generation, members)| {
        live.prepare_for(tc, &key, generation, members);
        generation
    });
    let generations: Vec<u64> = versions.collect();

    // The detector detects: without a chain the packets arrive.
    let forbidden = Udp4::to_port(FORBIDDEN).frame();
    send_frames(&live.pair, &vec![forbidden.clone(); 10]).unwrap();
    wait_for(Duration::from_secs(5), "packets to arrive while nothing is attached", || {
        match udp(&live, "NoPorts") {
            10 => Ok(()),
            seen => Err(seen),
        }
    })
    .unwrap();

    let mut running = generations[0];
    let switch = |generation, expect| {
        live.kernel(|kernel| kernel.switch(&key, generation, mode, expect)).unwrap()
    };
    let first = switch(running, Expect::Nothing);
    let _unread = live.pair.host.run(|| Ok(UdpSocket::bind((HOST_IP, ALLOWED))?)).unwrap();
    // Nine to the port that is dropped, one that shows that packets do get through.
    let mut frames = vec![forbidden; 9];
    frames.push(Udp4::to_port(ALLOWED).frame());
    let flood = Flood::start(&live.pair.peer, PEER_LINK, vec![frames; 7].concat()).unwrap();
    wait_for(Duration::from_secs(20), "the flood to start", || match flood.sent() {
        0..1_000 => Err(flood.sent()),
        _ => Ok(()),
    })
    .unwrap();

    // On until the flood was large and many a swap had packets before and behind it.
    let (mut done, mut busy) = (0_u64, 0_u64);
    wait_for(Duration::from_mins(1), "enough swaps under a large enough flood", || {
        for _ in 0..swaps / 10 {
            let next = generations[usize::try_from(done + 1).unwrap() % generations.len()];
            let sent = flood.sent();
            let chain = switch(next, Expect::Generation(running));
            assert_eq!((chain.generation, chain.link_id), (next, first.link_id));
            running = next;
            done += 1;
            busy += u64::from(flood.sent() > sent);
        }
        if done >= swaps && busy >= swaps / 4 && flood.sent() >= at_least {
            Ok(())
        } else {
            Err((done, busy, flood.sent()))
        }
    })
    .unwrap();
    let sent = flood.stop().unwrap();
    live.kernel.settle().unwrap();

    let leaked = udp(&live, "NoPorts") - 10;
    let passed = udp(&live, "RcvbufErrors");
    let dropped: u64 = generations
        .iter()
        .flat_map(|generation| live.cells(&key, *generation))
        .map(|cells| cells.exits[drop])
        .sum();
    println!(
        "{hook} ({}): {done} swaps ({busy} with packets sent meanwhile), {sent} sent, {dropped} \
         dropped, {leaked} leaked, {passed} passed to the other port",
        first.mode
    );
    assert_eq!(leaked, 0, "packets to the dropped port were delivered");
    assert!(dropped > at_least / 2, "the flood hardly reached the chain: {dropped} of {sent}");
    assert!(passed > at_least / 100, "hardly anything was let through: {passed} of {sent}");
}

#[test]
fn a_thousand_swaps_of_native_xdp_leak_nothing() {
    swaps_leak_nothing(Hook::Xdp, (XdpMode::Native, TcMode::Best), 1_000, 500_000);
}

#[test]
fn swaps_of_generic_xdp_leak_nothing() {
    swaps_leak_nothing(Hook::Xdp, (XdpMode::Generic, TcMode::Best), 200, 200_000);
}

#[test]
fn a_thousand_swaps_of_tcx_leak_nothing() {
    swaps_leak_nothing(Hook::TcIngress, (XdpMode::Best, TcMode::Tcx), 1_000, 500_000);
}

#[test]
fn a_thousand_swaps_of_a_clsact_filter_leak_nothing() {
    swaps_leak_nothing(Hook::TcIngress, (XdpMode::Best, TcMode::Clsact), 1_000, 500_000);
}
