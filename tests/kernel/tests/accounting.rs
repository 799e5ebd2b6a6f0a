//! What a chain counts, against the packets that were sent and what the kernel counted itself, under
//! real traffic.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use canopy_api::{Hook, TcMode, VerdictSet};
use canopy_kernel::{Expect, Kernel as _, Member, MemberCells};
use canopy_kernel_aya::sys;
use canopy_kernel_tests::{
    chain::{member, object},
    live::{Live, dropper, pass_and_drop},
};
use canopy_test_support::{
    packet::Udp4,
    pair::{LinkCounters, PEER_LINK},
    traffic::{Flood, FrameSender},
    wait_for,
};
use std::time::Duration;

/// Where the UDP payload begins, counted from the end of the Ethernet header: the members below each
/// return a byte of it.
const PAYLOAD: usize = 28;
/// The most members there are in a chain here, and bytes in a payload.
const MEMBERS: usize = 32;
/// Frames in flight at a time: fewer than a veth queue holds (`VETH_RING_SIZE`, 256), so that none
/// is lost before it meets the chain.
const BURST: usize = 128;

/// A small generator of repeatable noise (Numerical Recipes' LCG).
struct Noise(u64);

impl Noise {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % limit
    }
}

/// A program that returns the packet's payload byte at its place, and counts its runs itself.
fn asker(hook: Hook, place: usize) -> Member {
    let function = if hook == Hook::Xdp { "xdp_verdict_byte" } else { "tc_verdict_byte" };
    let place_in_packet = u32::try_from(PAYLOAD + place).unwrap();
    Member {
        globals: vec![("place".to_owned(), place_in_packet.to_ne_bytes().to_vec())],
        proceed_on: VerdictSet::default_for(hook),
        ..member(&format!("ask-{place}"), hook, &object("verdict_byte"), function)
    }
}

/// A frame whose payload asks these verdicts of the members by place.
fn frame(verdicts: &[u8]) -> Vec<u8> {
    let mut frame = Udp4 { payload: MEMBERS, ..Udp4::to_port(9) }.frame();
    frame[14 + PAYLOAD..][..verdicts.len()].copy_from_slice(verdicts);
    frame
}

/// Sends each frame once, none lost on the way; the packets that arrived.
fn send_all(live: &Live, frames: &[Vec<u8>]) -> u64 {
    let before = live.pair.host_counters().unwrap();
    let mut arrived = before.rx_packets;
    live.pair
        .peer
        .run(|| {
            let sender = FrameSender::new(PEER_LINK)?;
            for burst in frames.chunks(BURST) {
                arrived += sender.send(burst)?;
                wait_for(Duration::from_secs(10), "a burst to arrive", || {
                    match live.pair.host_counters() {
                        Ok(LinkCounters { rx_packets, .. }) if rx_packets >= arrived => Ok(()),
                        other => Err((arrived, other)),
                    }
                })?;
            }
            Ok(())
        })
        .unwrap();
    live.pair.host_counters().unwrap().rx_packets - before.rx_packets
}

fn exits(cells: &[MemberCells]) -> u64 {
    cells.iter().flat_map(|cells| cells.exits).sum()
}

/// How often a member's own code says that it ran.
fn own_count(live: &Live, hook: Hook, generation: u64, member: &MemberCells) -> u64 {
    let path = live.kernel.pins().map(&Live::key(hook), generation, &member.name, ".bss");
    let map = sys::Map::new(sys::obj_get(&path).unwrap()).unwrap();
    let value = map.lookup(&[0; 4]).unwrap().unwrap();
    u64::from_ne_bytes(value[..8].try_into().unwrap())
}

/// Every packet is counted once, at the member that ended it, whatever the order of the members; each
/// member's runs are what its own code counted.
fn exact_over_reorders(hook: Hook) {
    const SENT: u64 = 4_000;
    let live = Live::new();
    let key = Live::key(hook);
    let (pass, drop) = pass_and_drop(hook);
    let (pass_byte, drop_byte) = (u8::try_from(pass).unwrap(), u8::try_from(drop).unwrap());
    let orders: [Vec<usize>; 8] = [
        vec![0],
        vec![0, 1],
        vec![1, 0],
        vec![3, 0, 4, 1, 2],
        (0..10).collect(),
        (0..10).rev().collect(),
        // Every place once: 7 and 32 have no common divisor.
        (0..32).map(|at| at * 7 % 32).collect(),
        vec![5],
    ];
    let mut noise = Noise(7);
    for (index, order) in orders.into_iter().enumerate() {
        let generation = index as u64 + 1;
        live.prepare(&key, generation, order.iter().map(|place| asker(hook, *place)).collect());
        let expect =
            if generation == 1 { Expect::Nothing } else { Expect::Generation(generation - 1) };
        live.switch(&key, generation, expect).unwrap();

        // The model: a packet ends at the first member that does not say "pass".
        let mut model = vec![[0_u64; 2]; order.len()];
        let frames: Vec<_> = (0..SENT)
            .map(|_| {
                let asked: Vec<_> = (0..MEMBERS)
                    .map(|_| if noise.below(order.len() + 2) == 0 { drop_byte } else { pass_byte })
                    .collect();
                let ends = order.iter().position(|place| asked[*place] == drop_byte);
                match ends {
                    Some(at) => model[at][1] += 1,
                    None => model[order.len() - 1][0] += 1,
                }
                frame(&asked)
            })
            .collect();
        let arrived = send_all(&live, &frames);
        assert_eq!(arrived, SENT);
        live.kernel.settle().unwrap();

        let cells = live.cells(&key, generation);
        assert_eq!(exits(&cells), arrived, "packets sent = sum of exits");
        let mut left = arrived;
        for (cells, model) in cells.iter().zip(&model) {
            assert_eq!(cells.runs(), left, "{order:?}: {}", cells.name);
            assert_eq!(cells.runs(), own_count(&live, hook, generation, cells), "{}", cells.name);
            assert_eq!((cells.exits[pass], cells.exits[drop]), (model[0], model[1]));
            left -= exits(std::slice::from_ref(cells));
        }
        assert_eq!(left, 0);
    }
    // An old generation counts no more.
    let before = live.cells(&key, 1);
    send_all(&live, &[frame(&[pass_byte; MEMBERS])]);
    live.kernel.settle().unwrap();
    assert_eq!(live.cells(&key, 1), before);
}

#[test]
fn xdp_counts_are_exact_over_reorders() {
    exact_over_reorders(Hook::Xdp);
}

#[test]
fn tc_counts_are_exact_over_reorders() {
    exact_over_reorders(Hook::TcIngress);
}

/// Generations come and go under a flood; what they counted, folded together after a grace period,
/// is what arrived, to the packet.
fn exact_over_swaps(hook: Hook, tc: TcMode) {
    const GENERATIONS: u64 = 25;
    let live = Live::new();
    let key = Live::key(hook);
    let (pass, drop) = pass_and_drop(hook);
    let members = |generation: u64| {
        let asker = asker(hook, 0);
        let dropper = dropper("drop", hook, 7);
        // The order changes, and sometimes the number.
        match generation % 3 {
            0 => vec![asker, dropper],
            1 => vec![dropper, asker],
            _ => vec![asker, dropper, dropper_twin(hook)],
        }
    };
    live.prepare_for(tc, &key, 1, members(1));
    live.switch(&key, 1, Expect::Nothing).unwrap();
    let (before, sent_before) =
        (live.pair.host_counters().unwrap(), live.pair.peer_counters().unwrap());
    assert_eq!(before.rx_packets, 0, "{before:?}");

    let pass_byte = u8::try_from(pass).unwrap();
    let mut frames = vec![frame(&[pass_byte; 5]); 3];
    // Dropped by the asker's own word, and by port.
    frames.push(frame(&[u8::try_from(drop).unwrap(); 5]));
    frames.push({
        let mut frame = Udp4::to_port(7).frame();
        frame[14 + PAYLOAD..][..5].fill(pass_byte);
        frame
    });
    let flood = Flood::start(&live.pair.peer, PEER_LINK, vec![frames; 10].concat()).unwrap();
    let mut totals = [0_u64; 2];
    let mut counted = 0;
    let mut fold = |generation| {
        live.kernel.settle().unwrap();
        let cells = live.cells(&key, generation);
        counted += exits(&cells);
        for member in &cells {
            totals[0] += member.exits[pass];
            totals[1] += member.exits[drop];
            if member.name.as_str() == "ask-0" {
                assert_eq!(member.runs(), own_count(&live, hook, generation, member));
            }
        }
        live.kernel(|kernel| kernel.discard(&key, generation)).unwrap();
    };
    for generation in 2..=GENERATIONS {
        // Each generation is to see packets of its own.
        let mark = flood.sent() + 2_000;
        wait_for(Duration::from_secs(20), "the flood to go on", || {
            if flood.sent() >= mark { Ok(()) } else { Err(flood.sent()) }
        })
        .unwrap();
        live.prepare_for(tc, &key, generation, members(generation));
        live.switch(&key, generation, Expect::Generation(generation - 1)).unwrap();
        fold(generation - 1);
    }
    let sent = flood.stop().unwrap();
    let after = wait_for(Duration::from_secs(10), "the last packets to arrive", || {
        let (host, peer) = (live.pair.host_counters().unwrap(), live.pair.peer_counters().unwrap());
        let taken = peer.tx_packets + peer.tx_dropped;
        let sent = sent + sent_before.tx_packets;
        if taken >= sent && host.rx_packets >= peer.tx_packets {
            Ok(host)
        } else {
            Err((sent, host, peer))
        }
    })
    .unwrap();
    fold(GENERATIONS);

    assert!(sent > 50_000, "hardly a flood: {sent}");
    assert_eq!(counted, after.rx_packets, "sum of exits over all generations = packets received");
    assert_eq!(totals[0] + totals[1], counted, "every packet passed or was dropped");
    println!("{hook}: {sent} sent, {counted} counted over {GENERATIONS} generations: {totals:?}");
}

fn dropper_twin(hook: Hook) -> Member {
    dropper("twin", hook, 9_999)
}

#[test]
fn xdp_counts_are_exact_over_swaps_under_a_flood() {
    exact_over_swaps(Hook::Xdp, TcMode::Best);
}

#[test]
fn tc_counts_are_exact_over_swaps_under_a_flood() {
    exact_over_swaps(Hook::TcIngress, TcMode::Tcx);
}

#[test]
fn clsact_counts_are_exact_over_swaps_under_a_flood() {
    exact_over_swaps(Hook::TcIngress, TcMode::Clsact);
}
