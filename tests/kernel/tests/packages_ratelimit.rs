//! The ratelimit package: buckets, sources and settings, asserted from the kernel's maps.
#![allow(clippy::unwrap_used, reason = "test code: a failure is a panic")]

use anyhow::Result;
use canopy_api::Hook;
use canopy_kernel_tests::{
    package::Loaded,
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
    limit.map("rl_sources").update(&sources[0].0, &0_u64.to_ne_bytes(), 0)?;
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
        let mut key = [0_u8; 16];
        key[..4].copy_from_slice(&i.to_be_bytes());
        key[15] = 1;
        sources.update(&key, &u64::MAX.to_ne_bytes(), 0)?;
    }
    assert_eq!(limit.run(&frame("10.0.0.1")), PASS);
    assert_eq!(limit.run(&frame("10.0.0.1")), DROP);
    assert!(limit.metric("sources") <= u64::from(capacity));
    Ok(())
}
