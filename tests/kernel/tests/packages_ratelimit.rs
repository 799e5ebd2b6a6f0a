//! The ratelimit package: buckets, sources and settings, asserted from the kernel's maps.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "test code: a failure is a panic"
)]

use anyhow::Result;
use canopy_api::Hook;
use canopy_kernel_tests::{
    package::{Loaded, number},
    packet::{self, Ipv4, Ipv6, ethernet, udp},
};
use serde_json::json;
use std::{
    thread,
    time::{Duration, Instant},
};

const DROP: i32 = 1;
const PASS: i32 = 2;

/// Packets a second, so few that hardly a bucket refills while a test runs.
const SLOW: u32 = 1;
const SLOT: [u8; 4] = [0; 4];

fn frame(source: &str) -> Vec<u8> {
    Ipv4::from(source).frame(&udp(1000, 53, b"query"))
}

/// `struct settings` of ratelimit.bpf.c.
fn setting(rate: u32, burst: u32, ipv6_prefix: u32) -> Vec<u8> {
    [rate, burst, ipv6_prefix].iter().flat_map(|field| field.to_ne_bytes()).collect()
}

/// `struct bucket` of ratelimit.bpf.c.
fn bucket(full_at: u64, interval: u64) -> Vec<u8> {
    [full_at, interval].iter().flat_map(|field| field.to_ne_bytes()).collect()
}

/// How many of the next `count` packets pass.
fn passing(limit: &Loaded, packet: &[u8], count: usize) -> usize {
    (0..count).filter(|_| limit.run(packet) == PASS).count()
}

/// Five packets more than a source's bucket holds, which refills by one a second: the burst passes,
/// and as many more as seconds went by.
#[track_caller]
fn assert_burst(limit: &Loaded, packet: &[u8], burst: usize, since: Instant) {
    let passed = passing(limit, packet, burst + 5);
    let refilled = usize::try_from(since.elapsed().as_secs()).unwrap() + 1;
    assert!((burst..burst + refilled).contains(&passed), "{passed} passed of a burst of {burst}");
}

#[test]
fn a_burst_passes_and_the_rest_is_dropped_for_each_source_alone() -> Result<()> {
    let limit = Loaded::new("ratelimit", Hook::Xdp, &json!({ "rate": SLOW, "burst": 5 }))?;
    for source in ["10.0.0.1", "10.0.0.2", "192.0.2.200"] {
        assert_burst(&limit, &frame(source), 5, Instant::now());
    }
    let ipv6 = Ipv6::from("2001:db8::7").frame(&udp(1, 2, b""));
    assert_burst(&limit, &ipv6, 5, Instant::now());
    let (passed, limited) = (limit.metric("passed"), limit.metric("limited"));
    assert_eq!(passed + limited, 40);
    assert!(passed >= 20, "{passed}");
    assert_eq!(limit.metric("exempt"), 0);
    assert_eq!(limit.metric("sources"), 4);
    // The chain's accounting says the same.
    let verdicts = limit.cells().verdicts();
    assert_eq!((verdicts[1], verdicts[2]), (limited, passed));
    Ok(())
}

#[test]
fn a_bucket_refills_at_the_rate() -> Result<()> {
    // A token a millisecond, and room for ten seconds of them: none is lost for want of room.
    let limit = Loaded::new("ratelimit", Hook::Xdp, &json!({ "rate": 1000, "burst": 10_000 }))?;
    let packet = frame("10.0.0.1");
    let before_first = Instant::now();
    limit.run_many(&packet, 11_000);
    let after_first = Instant::now();
    let mut sent = 11_000;
    let mut before_last = after_first;
    // Each round sends more than can have come back since the one before, and so takes it all.
    while after_first.elapsed() < Duration::from_millis(500) {
        before_last = Instant::now();
        limit.run_many(&packet, 11_000);
        sent += 11_000;
    }
    let most = 10_000 + before_first.elapsed().as_millis() + 1;
    let least = 10_000 + (before_last - after_first).as_millis() - 1;
    let passed = limit.metric("passed");
    assert_eq!(passed + limit.metric("limited"), sent);
    assert!((least..=most).contains(&u128::from(passed)), "{passed} passed of {least} to {most}");
    Ok(())
}

#[test]
fn a_source_silent_for_ever_gets_no_more_than_a_burst() -> Result<()> {
    let limit = Loaded::new("ratelimit", Hook::Xdp, &json!({ "rate": SLOW, "burst": 3 }))?;
    let packet = frame("10.0.0.1");
    assert_eq!(limit.run(&packet), PASS);
    let sources = limit.entries("rl_sources");
    assert_eq!(sources.len(), 1);
    // Last seen when the machine started.
    let interval = number(&sources[0].1[0], 8);
    limit.map("rl_sources").update(&sources[0].0, &bucket(0, interval), 0)?;
    assert_burst(&limit, &packet, 3, Instant::now());
    Ok(())
}

#[test]
fn settings_change_live() -> Result<()> {
    let limit = Loaded::new("ratelimit", Hook::Xdp, &json!({ "rate": SLOW, "burst": 4 }))?;
    let settings = limit.map("rl_settings");
    assert_eq!(settings.lookup(&SLOT)?, Some(setting(SLOW, 4, 128)));
    let packet = frame("10.0.0.1");
    let start = Instant::now();
    assert_burst(&limit, &packet, 4, start);
    // A larger burst: the bucket goes on from where it is, with room for six more.
    settings.update(&SLOT, &setting(SLOW, 10, 128), 0)?;
    assert_burst(&limit, &packet, 6, start);
    // A rate of 0, which no document can ask for, limits nothing.
    settings.update(&SLOT, &setting(0, 0, 128), 0)?;
    assert_eq!(passing(&limit, &packet, 100), 100);
    // A burst of 0 stops everybody, known or not.
    settings.update(&SLOT, &setting(SLOW, 0, 128), 0)?;
    assert_eq!(limit.run(&packet), DROP);
    assert_eq!(limit.run(&frame("10.0.0.99")), DROP);
    Ok(())
}

/// Packets that one source got through, by settings that change on the way: (rate, burst, packets
/// that pass at once). Rates are so low, or so high, that it does not matter how long a step takes.
#[track_caller]
fn assert_steps(steps: &[(u32, u32, usize)]) -> Result<()> {
    let (rate, burst, _) = steps[0];
    let limit = Loaded::new("ratelimit", Hook::Xdp, &json!({ "rate": rate, "burst": burst }))?;
    let packet = frame("10.0.0.1");
    for (step, (rate, burst, passes)) in steps.iter().copied().enumerate() {
        limit.map("rl_settings").update(&SLOT, &setting(rate, burst, 128), 0)?;
        let start = Instant::now();
        let passed = passing(&limit, &packet, passes + 5);
        // Seconds of the steps before this one count as well: a part of a token may have been left.
        let refilled = (start.elapsed().as_secs_f64() * f64::from(rate)) as usize + 1;
        assert!(
            (passes..=passes + refilled).contains(&passed),
            "step {step}, rate {rate}, burst {burst}: {passed} passed, not {passes}"
        );
    }
    Ok(())
}

#[test]
fn a_drained_source_has_no_burst_after_any_change_of_rate() -> Result<()> {
    // Rates at which less than a token comes back in the time a step takes.
    assert_steps(&[(1, 200, 200), (2, 200, 0), (1, 200, 0), (3, 200, 0)])?;
    // A drained source of a high rate, which is full again in a fraction of a second: there is none
    // such source left once it is limited at a low one.
    let limit = Loaded::new("ratelimit", Hook::Xdp, &json!({ "rate": 1000, "burst": 200 }))?;
    let packet = frame("10.0.0.1");
    limit.run_many(&packet, 2000);
    limit.map("rl_settings").update(&SLOT, &setting(1, 200, 128), 0)?;
    let passed = passing(&limit, &packet, 300);
    // What came back at the old rate until the next packet: milliseconds, not all of it.
    assert!(passed < 100, "{passed} of a source that had spent its tokens");
    Ok(())
}

#[test]
fn a_raised_rate_is_there_at_once_for_a_limited_source() -> Result<()> {
    for (rate, burst) in [(1, 100_000), (100, 200), (1, 1_000_000), (7, 300)] {
        let limit = Loaded::new("ratelimit", Hook::Xdp, &json!({ "rate": rate, "burst": burst }))?;
        let packet = frame("10.0.0.1");
        limit.run_many(&packet, burst + 1000);
        assert!(limit.metric("limited") > 0);
        // From there on 1,000 packets a second, in whatever time that takes here.
        limit.map("rl_settings").update(&SLOT, &setting(1000, burst, 128), 0)?;
        let (start, before) = (Instant::now(), limit.metric("passed"));
        while start.elapsed() < Duration::from_millis(200) {
            limit.run(&packet);
        }
        let passed = u128::from(limit.metric("passed") - before);
        let due = start.elapsed().as_millis();
        // The last token may be spent only by the packet after the last.
        assert!(passed <= due + 2, "{rate}, {burst}: {passed} in {due} ms");
        // A machine that stops for longer than the burst lasts loses tokens; nobody is locked out.
        assert!(2 * passed + 40 >= due, "{rate}, {burst}: {passed} in {due} ms");
    }
    Ok(())
}

#[test]
fn a_lowered_burst_locks_nobody_out() -> Result<()> {
    let limit = Loaded::new("ratelimit", Hook::Xdp, &json!({ "rate": 10, "burst": 100_000 }))?;
    let packet = frame("10.0.0.1");
    limit.run_many(&packet, 101_000);
    limit.map("rl_settings").update(&SLOT, &setting(10, 2, 128), 0)?;
    // Empty, and one token in a tenth of a second: not in hours.
    assert_eq!(limit.run(&packet), DROP);
    let start = Instant::now();
    while limit.run(&packet) == DROP {
        assert!(start.elapsed() < Duration::from_secs(3), "nothing passes");
    }
    assert!(start.elapsed() > Duration::from_millis(50), "a token too early");
    Ok(())
}

#[test]
fn a_changed_burst_keeps_what_is_missing() -> Result<()> {
    assert_steps(&[(1, 10, 10), (1, 30, 20), (1, 5, 0), (1, 6, 1), (1, 1, 0)])?;
    // Both at once: none is left of 10, all 10 are missing of 25.
    assert_steps(&[(1, 10, 10), (2, 25, 15)])
}

/// The longest time there is: one packet a second and a bucket of a million.
#[test]
fn the_largest_bucket_at_the_lowest_rate_is_exact() -> Result<()> {
    let limit = Loaded::new("ratelimit", Hook::Xdp, &json!({ "rate": 1, "burst": 1_000_000 }))?;
    let (packet, start) = (frame("10.0.0.1"), Instant::now());
    limit.run_many(&packet, 1_100_000);
    let passed = limit.metric("passed");
    let most = 1_000_001 + start.elapsed().as_secs();
    assert!((1_000_000..=most).contains(&passed), "{passed}");
    assert_eq!(passed + limit.metric("limited"), 1_100_000);
    // The highest rate after it, and the lowest again.
    limit.map("rl_settings").update(&SLOT, &setting(10_000_000, 1_000_000, 128), 0)?;
    assert!(passing(&limit, &packet, 100) >= 90);
    limit.map("rl_settings").update(&SLOT, &setting(1, 1_000_000, 128), 0)?;
    assert!(passing(&limit, &packet, 100) > 0);
    Ok(())
}

/// Each CPU brings the bucket to its own generation's rate while both are there.
#[test]
fn rates_that_change_under_load_hand_out_no_burst() -> Result<()> {
    const EACH: u32 = 400_000;
    let limit = Loaded::new("ratelimit", Hook::Xdp, &json!({ "rate": 1, "burst": 1000 }))?;
    let packet = frame("10.0.0.1");
    limit.run_many(&packet, 1500);
    let (before, start) = (limit.metric("passed"), Instant::now());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| limit.run_many(&packet, EACH));
        }
        let settings = limit.map("rl_settings");
        for round in 0..2000_u32 {
            settings.update(&SLOT, &setting(1 + round % 3, 1000, 128), 0).unwrap();
        }
    });
    let passed = limit.metric("passed") - before;
    let most = start.elapsed().as_secs() * 3 + 3;
    assert!(passed <= most, "{passed} of a source that had spent its tokens");
    Ok(())
}

#[test]
fn neighbours_on_the_link_are_sources_of_their_own() -> Result<()> {
    let settings = json!({ "rate": SLOW, "burst": 1, "ipv6_prefix": 64 });
    let limit = Loaded::new("ratelimit", Hook::Xdp, &settings)?;
    let at = |source: &str| Ipv6::from(source).frame(&udp(1, 2, b""));
    for (busy, quiet) in [
        ("fe80::1", "fe80::2"),
        ("febf::1", "febf::2"),
        // IPv4 hosts behind a translator.
        ("64:ff9b::198.51.100.1", "64:ff9b::198.51.100.2"),
    ] {
        assert_burst(&limit, &at(busy), 1, Instant::now());
        assert_eq!(limit.run(&at(quiet)), PASS, "{quiet}");
    }
    // A network of global addresses is one source, and so are those next to the special ones.
    for (busy, same) in [
        ("2001:db8::1", "2001:db8::2"),
        ("fec0::1", "fec0::2"),
        ("64:ff9b:0:1::1", "64:ff9b:0:1::2"),
        ("64:ff9c::1", "64:ff9c::2"),
    ] {
        assert_eq!(limit.run(&at(busy)), PASS, "{busy}");
        assert_eq!(limit.run(&at(same)), DROP, "{same}");
    }
    Ok(())
}

/// An `ICMPv6` message of a type and code with a hop limit.
fn icmp6(source: &str, kind: u8, code: u8, hop_limit: u8) -> Vec<u8> {
    let ipv6 = Ipv6 { protocol: packet::ICMPV6, ..Ipv6::from(source) };
    let mut packet = ipv6.packet(&[kind, code, 0, 0, 0, 0, 0, 0]);
    packet[7] = hop_limit;
    ethernet(&[], packet::ETH_IPV6, &packet)
}

#[test]
fn a_limited_source_is_still_found_by_its_neighbours() -> Result<()> {
    let settings = json!({ "rate": SLOW, "burst": 4, "ipv6_prefix": 64 });
    let limit = Loaded::new("ratelimit", Hook::Xdp, &settings)?;
    let busy = Ipv6::from("2001:db8::1").frame(&udp(1, 2, b""));
    assert_burst(&limit, &busy, 4, Instant::now());
    // Of its whole network, and of itself.
    for source in ["2001:db8::1", "2001:db8::2"] {
        for kind in 133..=136 {
            assert_eq!(limit.run(&icmp6(source, kind, 0, 255)), PASS, "{source} type {kind}");
        }
        // It is limited as well.
        assert_eq!(limit.run(&icmp6(source, 136, 0, 255)), DROP, "{source}");
    }
    // From another link, another message, another code, or cut short: a packet like any other.
    let mut cut = icmp6("2001:db8::3", 136, 0, 255);
    cut.truncate(14 + 40 + 1);
    let others = [
        icmp6("2001:db8::3", 136, 0, 254),
        icmp6("2001:db8::3", 128, 0, 255),
        icmp6("2001:db8::3", 132, 0, 255),
        icmp6("2001:db8::3", 137, 0, 255),
        icmp6("2001:db8::3", 136, 1, 255),
        cut,
    ];
    for frame in others {
        assert_eq!(limit.run(&frame), DROP);
    }
    Ok(())
}

#[test]
fn ipv4_and_its_form_in_ipv6_are_two_sources() -> Result<()> {
    let limit = Loaded::new("ratelimit", Hook::Xdp, &json!({ "rate": SLOW, "burst": 1 }))?;
    let mapped = Ipv6::from("::ffff:10.0.0.1").frame(&udp(1, 2, b""));
    assert_burst(&limit, &mapped, 1, Instant::now());
    assert_eq!(limit.run(&frame("10.0.0.1")), PASS);
    assert_eq!(limit.metric("sources"), 2);
    Ok(())
}

#[test]
fn a_stack_of_vlan_tags_evades_no_limit() -> Result<()> {
    let limit = Loaded::new("ratelimit", Hook::Xdp, &json!({ "rate": SLOW, "burst": 33 }))?;
    let packet = Ipv4::from("10.0.0.1").packet(b"");
    let at = |depth| ethernet(&vec![(packet::ETH_VLAN, 0); depth], packet::ETH_IPV4, &packet);
    for depth in 0..=32 {
        assert_eq!(limit.run(&at(depth)), PASS, "{depth} tags");
    }
    assert_eq!(limit.metric("sources"), 1);
    assert_burst(&limit, &at(8), 0, Instant::now());
    // Those whose source is not read have one bucket.
    let start = Instant::now();
    let passed = (0..300).filter(|more| limit.run(&at(33 + more)) == PASS).count();
    assert!((33..35 + start.elapsed().as_secs() as usize).contains(&passed), "{passed}");
    assert_eq!(limit.metric("sources"), 2);
    assert_eq!(limit.metric("exempt"), 0);
    Ok(())
}

#[test]
fn ipv6_sources_are_as_wide_as_the_prefix() -> Result<()> {
    let body = udp(1, 2, b"");
    let at = |source: &str| Ipv6::from(source).frame(&body);
    // Prefix length; an address of the same source as 2001:db8:1:2:8000::1; one of another.
    let cases = [
        (128, None, "2001:db8:1:2:8000::2"),
        (127, Some("2001:db8:1:2:8000::"), "2001:db8:1:2:8000::2"),
        (96, Some("2001:db8:1:2:8000::ffff:ffff"), "2001:db8:1:2:8000:1::1"),
        (65, Some("2001:db8:1:2:ffff::1"), "2001:db8:1:2:7fff::1"),
        (64, Some("2001:db8:1:2::1"), "2001:db8:1:3:8000::1"),
        (56, Some("2001:db8:1:ff::1"), "2001:db8:1:100::1"),
        (1, Some("7fff::1"), "8000::1"),
    ];
    for (prefix, same, other) in cases {
        let settings = json!({ "rate": SLOW, "burst": 2, "ipv6_prefix": prefix });
        let limit = Loaded::new("ratelimit", Hook::Xdp, &settings)?;
        assert_eq!(limit.run(&at("2001:db8:1:2:8000::1")), PASS);
        if let Some(same) = same {
            assert_eq!(limit.run(&at(same)), PASS, "/{prefix}");
            assert_eq!(limit.metric("sources"), 1, "/{prefix}");
        }
        assert_eq!(limit.run(&at(other)), PASS, "/{prefix}");
        assert_eq!(limit.metric("sources"), 2, "/{prefix}");
    }
    Ok(())
}

#[test]
fn an_ipv4_source_is_a_whole_address_whatever_the_ipv6_prefix() -> Result<()> {
    let settings = json!({ "rate": SLOW, "burst": 1, "ipv6_prefix": 1 });
    let limit = Loaded::new("ratelimit", Hook::Xdp, &settings)?;
    assert_eq!(limit.run(&frame("10.0.0.1")), PASS);
    assert_eq!(limit.run(&frame("10.0.0.2")), PASS);
    assert_eq!(limit.metric("sources"), 2);
    Ok(())
}

#[test]
fn tags_fragments_and_headers_do_not_make_another_source() -> Result<()> {
    let limit = Loaded::new("ratelimit", Hook::Xdp, &json!({ "rate": SLOW, "burst": 1000 }))?;
    let from = Ipv4::from("10.0.0.1");
    let mut frames = vec![from.frame(&udp(1, 2, b"")), from.frame(b"")];
    for tags in [&[(packet::ETH_VLAN, 7)][..], &[(packet::ETH_QINQ, 9), (packet::ETH_VLAN, 7)]] {
        frames.push(ethernet(tags, packet::ETH_IPV4, &from.packet(b"")));
    }
    frames.push(Ipv4 { options: vec![1; 40], ..from.clone() }.frame(b""));
    frames.push(Ipv4 { more_fragments: true, ..from.clone() }.frame(&[0; 8]));
    frames.push(Ipv4 { fragment_offset: 100, ..from.clone() }.frame(&[0; 8]));
    frames.push(Ipv4 { protocol: packet::ICMP, ..from }.frame(&[8, 0, 0, 0]));
    for frame in &frames {
        assert_eq!(limit.run(frame), PASS);
    }
    assert_eq!(limit.metric("sources"), 1);
    let from = Ipv6::from("fe80::1");
    let first = from.clone().extension(packet::FRAGMENT, packet::fragment_header(0, true));
    let hop = from.clone().extension(packet::HOP_BY_HOP, packet::options_header(8));
    for frame in [from.frame(b""), first.frame(&[0; 8]), hop.frame(b"")] {
        assert_eq!(limit.run(&frame), PASS);
    }
    assert_eq!(limit.metric("sources"), 2);
    assert_eq!(limit.metric("passed"), frames.len() as u64 + 3);
    Ok(())
}

#[test]
fn what_has_no_source_passes_and_is_counted() -> Result<()> {
    let limit = Loaded::new("ratelimit", Hook::Xdp, &json!({ "rate": SLOW, "burst": 1 }))?;
    let mut frames = vec![ethernet(&[], packet::ETH_ARP, &[0; 28])];
    for length in 0..20 {
        let bytes = &Ipv4::from("10.0.0.1").packet(&[])[..length];
        frames.push(ethernet(&[], packet::ETH_IPV4, bytes));
    }
    for length in 0..40 {
        let bytes = &Ipv6::from("fe80::1").packet(&[])[..length];
        frames.push(ethernet(&[(packet::ETH_VLAN, 1)], packet::ETH_IPV6, bytes));
    }
    for frame in &frames {
        assert_eq!(limit.run(frame), PASS);
    }
    assert_eq!(limit.metric("exempt"), frames.len() as u64);
    assert_eq!(limit.metric("sources"), 0);
    Ok(())
}

#[test]
fn cpus_that_share_a_source_do_not_spend_a_token_twice() -> Result<()> {
    const SENDERS: u64 = 4;
    const EACH: u32 = 50_000;
    let limit = Loaded::new("ratelimit", Hook::Xdp, &json!({ "rate": SLOW, "burst": 10_000 }))?;
    let packet = frame("10.0.0.1");
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..SENDERS {
            scope.spawn(|| limit.run_many(&packet, EACH));
        }
    });
    let refilled = start.elapsed().as_secs() + 1;
    let passed = limit.metric("passed");
    assert_eq!(passed + limit.metric("limited"), SENDERS * u64::from(EACH));
    // Exactly the burst: no token twice, and none lost.
    assert!((10_000..=10_000 + refilled).contains(&passed), "{passed}");
    Ok(())
}

#[test]
fn more_sources_than_fit_forget_the_oldest() -> Result<()> {
    let limit = Loaded::new("ratelimit", Hook::Xdp, &json!({ "rate": SLOW, "burst": 1 }))?;
    let sources = limit.map("rl_sources");
    let capacity = sources.info().max_entries;
    // Strangers first, more than fit; then one more.
    for i in 0..capacity + 1000 {
        let mut key = [0_u8; 20];
        key[..4].copy_from_slice(&i.to_be_bytes());
        key[15] = 1;
        sources.update(&key, &bucket(u64::MAX, 1), 0)?;
    }
    assert_eq!(limit.run(&frame("10.0.0.1")), PASS);
    assert_eq!(limit.run(&frame("10.0.0.1")), DROP);
    assert!(limit.metric("sources") <= u64::from(capacity));
    Ok(())
}
