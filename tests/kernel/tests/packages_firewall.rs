//! The firewall package: what it drops, what it lets pass, and what it counts, asserted from the
//! kernel's maps.
#![allow(clippy::indexing_slicing, reason = "test code: a failure is a panic")]

use anyhow::Result;
use canopy_api::Hook;
use canopy_kernel_tests::{
    package::Loaded,
    packet::{self, Ipv4, Ipv6, ethernet, udp},
};
use serde_json::json;

const DROP: i32 = 1;
const PASS: i32 = 2;
/// `CANOPY_VLAN_DEPTH` of packet.h.
const MAX_TAGS: usize = 32;

/// Every counter of the package at once; each packet is in exactly one.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    blocked: u64,
    allowed: u64,
    unlisted: u64,
    malformed: u64,
    other: u64,
}

fn totals(firewall: &Loaded) -> Totals {
    Totals {
        blocked: firewall.metric("blocked"),
        allowed: firewall.metric("allowed"),
        unlisted: firewall.metric("unlisted"),
        malformed: firewall.metric("malformed"),
        other: firewall.metric("other"),
    }
}

/// The per-rule counters of the first `count` items of a list.
fn hits(firewall: &Loaded, map: &str, count: u32) -> Vec<u64> {
    (0..count).map(|slot| firewall.sum(map, slot, 0)).collect()
}

/// Blocks one address of each family and nothing else.
fn blocking_two() -> Result<Loaded> {
    Loaded::new("firewall", Hook::Xdp, &json!({ "blocked": ["10.0.0.1", "fe80::1"] }))
}

#[test]
fn the_longest_prefix_decides_and_each_rule_counts_its_packets() -> Result<()> {
    let firewall = Loaded::new(
        "firewall",
        Hook::Xdp,
        &json!({
            "blocked": ["198.51.100.0/24", "2001:db8:bad::/48", "203.0.113.9", "10.0.0.0/8"],
            "allowed": ["198.51.100.64/26", "2001:db8:bad:1::/64", "10.0.0.0/8"],
        }),
    )?;
    let body = udp(1, 2, b"x");
    let cases = [
        ("198.51.100.1", DROP),
        ("198.51.100.63", DROP),
        // Allowed by a longer prefix.
        ("198.51.100.64", PASS),
        ("198.51.100.127", PASS),
        ("198.51.100.128", DROP),
        ("198.51.101.1", PASS),
        // An address alone is a prefix of full length.
        ("203.0.113.9", DROP),
        ("203.0.113.8", PASS),
        // The same prefix in both lists.
        ("10.1.2.3", PASS),
    ];
    for (source, verdict) in cases {
        assert_eq!(firewall.run(&Ipv4::from(source).frame(&body)), verdict, "{source}");
    }
    let cases = [
        ("2001:db8:bad::1", DROP),
        ("2001:db8:bad:ffff::1", DROP),
        ("2001:db8:bad:1::1", PASS),
        ("2001:db8:bae::1", PASS),
        // An IPv4 rule says nothing about the IPv6 address that looks like it.
        ("::ffff:203.0.113.9", PASS),
    ];
    for (source, verdict) in cases {
        assert_eq!(firewall.run(&Ipv6::from(source).frame(&body)), verdict, "{source}");
    }
    assert_eq!(
        totals(&firewall),
        Totals { blocked: 6, allowed: 4, unlisted: 4, malformed: 0, other: 0 }
    );
    assert_eq!(hits(&firewall, "fw_blocked_hits", 4), [3, 2, 1, 0]);
    assert_eq!(hits(&firewall, "fw_allowed_hits", 3), [2, 1, 1]);
    // The chain's accounting says the same.
    let verdicts = firewall.cells().verdicts();
    assert_eq!((verdicts[1], verdicts[2]), (6, 8));
    Ok(())
}

#[test]
fn a_longer_block_inside_an_allowed_network_blocks() -> Result<()> {
    let firewall = Loaded::new(
        "firewall",
        Hook::Xdp,
        &json!({ "blocked": ["10.9.0.0/16", "0.0.0.0/0", "::/0"], "allowed": ["10.0.0.0/8"] }),
    )?;
    assert_eq!(firewall.run(&Ipv4::from("10.8.0.1").frame(&[])), PASS);
    assert_eq!(firewall.run(&Ipv4::from("10.9.0.1").frame(&[])), DROP);
    // A prefix of length 0 is everybody else.
    assert_eq!(firewall.run(&Ipv4::from("192.0.2.77").frame(&[])), DROP);
    assert_eq!(firewall.run(&Ipv6::from("fe80::1").frame(&[])), DROP);
    assert_eq!(hits(&firewall, "fw_blocked_hits", 3), [1, 1, 1]);
    Ok(())
}

#[test]
fn vlan_tags_are_read_through() -> Result<()> {
    let firewall = blocking_two()?;
    let (one, two) = ((packet::ETH_VLAN, 7), (packet::ETH_QINQ, 100));
    let ipv4 = Ipv4::from("10.0.0.1").packet(&udp(1, 2, b""));
    let ipv6 = Ipv6::from("fe80::1").packet(&udp(1, 2, b""));
    for tags in [&[][..], &[one], &[two], &[two, one], &[one, one]] {
        assert_eq!(firewall.run(&ethernet(tags, packet::ETH_IPV4, &ipv4)), DROP, "{tags:?}");
        assert_eq!(firewall.run(&ethernet(tags, packet::ETH_IPV6, &ipv6)), DROP, "{tags:?}");
    }
    assert_eq!(totals(&firewall), Totals { blocked: 10, ..Totals::default() });
    Ok(())
}

#[test]
fn a_stack_of_vlan_tags_hides_no_source() -> Result<()> {
    let firewall = blocking_two()?;
    let (blocked4, blocked6) = (Ipv4::from("10.0.0.1"), Ipv6::from("fe80::1"));
    let other = Ipv4::from("10.0.0.2").packet(b"");
    for kind in [packet::ETH_VLAN, packet::ETH_QINQ] {
        for depth in 0..=MAX_TAGS {
            let tags = vec![(kind, 0); depth];
            let frame = ethernet(&tags, packet::ETH_IPV4, &blocked4.packet(b""));
            assert_eq!(firewall.run(&frame), DROP, "{depth} tags");
            let frame = ethernet(&tags, packet::ETH_IPV6, &blocked6.packet(b""));
            assert_eq!(firewall.run(&frame), DROP, "{depth} tags");
            assert_eq!(firewall.run(&ethernet(&tags, packet::ETH_IPV4, &other)), PASS);
        }
    }
    let stacks = (MAX_TAGS as u64 + 1) * 2;
    let expected = Totals { blocked: 2 * stacks, unlisted: stacks, ..Totals::default() };
    assert_eq!(totals(&firewall), expected);
    Ok(())
}

#[test]
fn more_tags_than_are_read_are_dropped_whoever_sends() -> Result<()> {
    let firewall = Loaded::new("firewall", Hook::Xdp, &json!({}))?;
    let ipv4 = Ipv4::from("10.0.0.1").packet(b"");
    let depths = [MAX_TAGS + 1, MAX_TAGS + 2, 2 * MAX_TAGS, 300, 1400];
    for depth in depths {
        let tags: Vec<_> = (0..depth)
            .map(|i| (if i % 3 == 0 { packet::ETH_QINQ } else { packet::ETH_VLAN }, 0))
            .collect();
        assert_eq!(firewall.run(&ethernet(&tags, packet::ETH_IPV4, &ipv4)), DROP, "{depth}");
        // What is behind them is not looked at.
        assert_eq!(firewall.run(&ethernet(&tags, packet::ETH_ARP, &[0; 28])), DROP, "{depth}");
    }
    let malformed = 2 * depths.len() as u64;
    assert_eq!(totals(&firewall), Totals { malformed, ..Totals::default() });
    Ok(())
}

/// 0x9100 is no tag to Linux: such a frame reaches no IP socket.
#[test]
fn a_frame_that_linux_does_not_take_for_ip_is_other() -> Result<()> {
    let firewall = Loaded::new(
        "firewall",
        Hook::Xdp,
        &json!({ "blocked": ["10.0.0.1"], "drop_unlisted": true, "drop_malformed": true }),
    )?;
    let ipv4 = Ipv4::from("10.0.0.1").packet(b"");
    let snap = [&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0][..], &ipv4].concat();
    let frames = [
        ethernet(&[(0x9100, 7)], packet::ETH_IPV4, &ipv4),
        // PPPoE, MPLS, MACsec; LLC/SNAP behind a length.
        ethernet(&[], 0x8864, &[&[0x11, 0, 0, 1, 0, 22, 0, 0x21][..], &ipv4].concat()),
        ethernet(&[], 0x8847, &[&[0, 0, 1, 64][..], &ipv4].concat()),
        ethernet(&[], 0x88e5, &ipv4),
        ethernet(&[], u16::try_from(snap.len())?, &snap),
    ];
    for frame in &frames {
        assert_eq!(firewall.run(frame), PASS);
    }
    assert_eq!(totals(&firewall), Totals { other: frames.len() as u64, ..Totals::default() });
    Ok(())
}

#[test]
fn every_fragment_meets_the_same_rule() -> Result<()> {
    let firewall = blocking_two()?;
    for (offset, more) in [(0, true), (1, true), (185, false)] {
        let ipv4 = Ipv4 { fragment_offset: offset, more_fragments: more, ..Ipv4::from("10.0.0.1") };
        assert_eq!(firewall.run(&ipv4.frame(&[0xaa; 8])), DROP);
        let ipv6 = Ipv6::from("fe80::1")
            .extension(packet::FRAGMENT, packet::fragment_header(offset, more));
        assert_eq!(firewall.run(&ipv6.frame(&[0xaa; 8])), DROP);
    }
    assert_eq!(totals(&firewall), Totals { blocked: 6, ..Totals::default() });
    Ok(())
}

#[test]
fn options_and_extension_headers_hide_nothing() -> Result<()> {
    let firewall = blocking_two()?;
    for words in [1, 5, 10] {
        let ipv4 = Ipv4 { options: vec![1; words * 4], ..Ipv4::from("10.0.0.1") };
        assert_eq!(firewall.run(&ipv4.frame(&udp(1, 2, b""))), DROP);
    }
    let ipv6 = Ipv6::from("fe80::1")
        .extension(packet::HOP_BY_HOP, packet::options_header(8))
        .extension(packet::DESTINATION, packet::options_header(2048));
    assert_eq!(firewall.run(&ipv6.frame(&udp(1, 2, b""))), DROP);
    assert_eq!(totals(&firewall), Totals { blocked: 4, ..Totals::default() });
    Ok(())
}

/// Frames that are not what they say, each with a name.
fn malformed() -> Vec<(String, Vec<u8>)> {
    let ipv4 = Ipv4::from("10.0.0.1");
    let ipv6 = Ipv6::from("fe80::1");
    let mut frames = Vec::new();
    for length in 0..20 {
        let bytes = &ipv4.packet(&[])[..length];
        frames.push((format!("{length} bytes of IPv4"), ethernet(&[], packet::ETH_IPV4, bytes)));
    }
    for length in 0..40 {
        let bytes = &ipv6.packet(&[])[..length];
        frames.push((format!("{length} bytes of IPv6"), ethernet(&[], packet::ETH_IPV6, bytes)));
    }
    for length in 0..4 {
        let tag = &[0, 7, 8, 0][..length];
        frames.push((format!("{length} bytes of a tag"), ethernet(&[], packet::ETH_VLAN, tag)));
        let inner = ethernet(&[(packet::ETH_QINQ, 1)], packet::ETH_VLAN, tag);
        frames.push((format!("{length} bytes of an inner tag"), inner));
    }
    let long = Ipv4 { options: vec![1; 40], ..ipv4.clone() };
    for (name, packet) in [
        ("version 6 in IPv4", Ipv4 { first_byte: Some(0x65), ..ipv4.clone() }),
        ("a header of 4 words", Ipv4 { first_byte: Some(0x44), ..ipv4.clone() }),
        ("a header of 0 words", Ipv4 { first_byte: Some(0x40), ..ipv4.clone() }),
        ("a total below the header", Ipv4 { total_length: Some(19), ..ipv4.clone() }),
        ("a total of 0", Ipv4 { total_length: Some(0), ..ipv4.clone() }),
        ("a total below the header with options", Ipv4 { total_length: Some(59), ..long }),
    ] {
        frames.push((name.to_owned(), packet.frame(&[0; 40])));
    }
    let cut = Ipv4 { first_byte: Some(0x4f), ..ipv4 };
    frames.push(("options cut short".to_owned(), cut.frame(&[0; 39])));
    let wrong = Ipv6 { first_byte: Some(0x45), ..ipv6 };
    frames.push(("version 4 in IPv6".to_owned(), wrong.frame(&[0; 40])));
    frames
}

#[test]
fn malformed_packets_pass_and_are_counted() -> Result<()> {
    // Whoever they say they are from: nothing in them can be believed.
    let firewall = blocking_two()?;
    let frames = malformed();
    for (name, frame) in &frames {
        assert_eq!(firewall.run(frame), PASS, "{name}");
    }
    assert_eq!(totals(&firewall), Totals { malformed: frames.len() as u64, ..Totals::default() });
    Ok(())
}

#[test]
fn malformed_packets_are_dropped_when_asked_for() -> Result<()> {
    let firewall = Loaded::new("firewall", Hook::Xdp, &json!({ "drop_malformed": true }))?;
    let frames = malformed();
    for (name, frame) in &frames {
        assert_eq!(firewall.run(frame), DROP, "{name}");
    }
    assert_eq!(firewall.run(&Ipv4::from("10.0.0.1").frame(&[])), PASS);
    assert_eq!(firewall.run(&Ipv6::from("fe80::1").frame(&[])), PASS);
    let malformed = frames.len() as u64;
    assert_eq!(totals(&firewall), Totals { malformed, unlisted: 2, ..Totals::default() });
    Ok(())
}

#[test]
fn nothing_malformed_is_on_a_list() -> Result<()> {
    let settings = json!({ "allowed": ["0.0.0.0/0", "::/0"], "drop_unlisted": true });
    let firewall = Loaded::new("firewall", Hook::Xdp, &settings)?;
    let frames = malformed();
    for (name, frame) in &frames {
        assert_eq!(firewall.run(frame), DROP, "{name}");
    }
    let malformed = frames.len() as u64;
    assert_eq!(totals(&firewall), Totals { malformed, ..Totals::default() });
    Ok(())
}

/// Packets that state to be longer than their frame, from a source.
fn truncated(v4: &str, v6: &str) -> Vec<Vec<u8>> {
    let (ipv4, ipv6) = (Ipv4::from(v4), Ipv6::from(v6));
    let mut frames = Vec::new();
    for total in [61, 62, 1500, u16::MAX] {
        frames.push(Ipv4 { total_length: Some(total), ..ipv4.clone() }.frame(&[0; 40]));
        let options = Ipv4 { total_length: Some(total), options: vec![1; 20], ..ipv4.clone() };
        frames.push(options.frame(&[0; 20]));
        let payload_length = Some(total - 20);
        frames.push(Ipv6 { payload_length, ..ipv6.clone() }.frame(&[0; 40]));
    }
    frames
}

#[test]
fn a_packet_longer_than_its_frame_is_malformed() -> Result<()> {
    let frames = truncated("10.0.0.2", "fe80::2");
    let malformed = frames.len() as u64;
    for (settings, verdict) in [
        (json!({}), PASS),
        (json!({ "drop_malformed": true }), DROP),
        (json!({ "drop_unlisted": true, "allowed": ["10.0.0.2", "fe80::/10"] }), DROP),
    ] {
        let firewall = Loaded::new("firewall", Hook::Xdp, &settings)?;
        for frame in &frames {
            assert_eq!(firewall.run(frame), verdict, "{settings}");
        }
        assert_eq!(totals(&firewall), Totals { malformed, ..Totals::default() });
        // Padding is not a contradiction, nor is a packet that fills its frame.
        for total in [20, 59, 60] {
            let fits = Ipv4 { total_length: Some(total), ..Ipv4::from("10.0.0.2") };
            assert_eq!(firewall.run(&fits.frame(&[0; 40])), PASS);
            let payload_length = Some(total - 20);
            let fits = Ipv6 { payload_length, ..Ipv6::from("fe80::2") };
            assert_eq!(firewall.run(&fits.frame(&[0; 40])), PASS);
        }
    }
    // Bridges pass them on, so a rule that blocks their source holds.
    let firewall = blocking_two()?;
    for frame in truncated("10.0.0.1", "fe80::1") {
        assert_eq!(firewall.run(&frame), DROP);
    }
    assert_eq!(totals(&firewall), Totals { blocked: malformed, ..Totals::default() });
    Ok(())
}

/// A frame of several buffers is as long as all of them.
#[test]
fn a_packet_in_several_buffers_is_not_malformed() -> Result<()> {
    let firewall = Loaded::new("firewall", Hook::Xdp, &json!({ "drop_malformed": true }))?;
    assert_eq!(firewall.run(&Ipv4::from("10.0.0.1").frame(&[0; 8000])), PASS);
    assert_eq!(firewall.run(&Ipv6::from("fe80::1").frame(&[0; 8000])), PASS);
    let longer = Ipv4 { total_length: Some(8021), ..Ipv4::from("10.0.0.1") };
    assert_eq!(firewall.run(&longer.frame(&[0; 8000])), DROP);
    let expected = Totals { unlisted: 2, malformed: 1, ..Totals::default() };
    assert_eq!(totals(&firewall), expected);
    Ok(())
}

/// Whole addresses are in other maps than the rest, and decide by the same rule.
#[test]
fn a_whole_address_decides_before_any_network() -> Result<()> {
    let firewall = Loaded::new(
        "firewall",
        Hook::Xdp,
        &json!({
            "blocked": ["10.0.0.0/8", "10.0.0.7", "10.0.0.8", "2001:db8::/32", "2001:db8::7",
                        "2001:db8::8"],
            "allowed": ["10.0.0.0/31", "10.0.0.8", "10.0.0.9", "2001:db8::/127", "2001:db8::8",
                        "2001:db8::9"],
        }),
    )?;
    for (host, verdict) in [(0, PASS), (1, PASS), (2, DROP), (7, DROP), (8, PASS), (9, PASS)] {
        let ipv4 = Ipv4::from(&format!("10.0.0.{host}"));
        assert_eq!(firewall.run(&ipv4.frame(b"")), verdict, "{host}");
        let ipv6 = Ipv6::from(&format!("2001:db8::{host}"));
        assert_eq!(firewall.run(&ipv6.frame(b"")), verdict, "{host}");
    }
    assert_eq!(hits(&firewall, "fw_blocked_hits", 6), [1, 1, 0, 1, 1, 0]);
    assert_eq!(hits(&firewall, "fw_allowed_hits", 6), [2, 1, 1, 2, 1, 1]);
    Ok(())
}

#[test]
fn only_the_listed_pass_when_asked_for() -> Result<()> {
    let firewall = Loaded::new(
        "firewall",
        Hook::Xdp,
        &json!({ "allowed": ["192.0.2.0/24", "fe80::/10"], "drop_unlisted": true }),
    )?;
    assert_eq!(firewall.run(&Ipv4::from("192.0.2.200").frame(&[])), PASS);
    assert_eq!(firewall.run(&Ipv4::from("192.0.3.1").frame(&[])), DROP);
    assert_eq!(firewall.run(&Ipv6::from("fe80::5").frame(&[])), PASS);
    assert_eq!(firewall.run(&Ipv6::from("2001:db8::5").frame(&[])), DROP);
    // Without ARP there is no IPv4.
    assert_eq!(firewall.run(&ethernet(&[], packet::ETH_ARP, &[0; 28])), PASS);
    assert_eq!(
        totals(&firewall),
        Totals { allowed: 2, unlisted: 2, other: 1, ..Totals::default() }
    );
    Ok(())
}

#[test]
fn lists_as_long_as_the_manifest_allows_fit() -> Result<()> {
    let list: Vec<String> = (0..4096).map(|i| format!("10.{}.{}.0/24", i / 256, i % 256)).collect();
    let firewall = Loaded::new("firewall", Hook::Xdp, &json!({ "blocked": list }))?;
    assert_eq!(firewall.run(&Ipv4::from("10.0.0.1").frame(&[])), DROP);
    assert_eq!(firewall.run(&Ipv4::from("10.15.255.255").frame(&[])), DROP);
    assert_eq!(firewall.run(&Ipv4::from("10.16.0.0").frame(&[])), PASS);
    assert_eq!(firewall.sum("fw_blocked_hits", 0, 0), 1);
    assert_eq!(firewall.sum("fw_blocked_hits", 4095, 0), 1);
    let list: Vec<String> = (0..4096).map(|i| format!("10.0.{}.{}", i / 256, i % 256)).collect();
    let firewall =
        Loaded::new("firewall", Hook::Xdp, &json!({ "allowed": list, "drop_unlisted": true }))?;
    for address in ["10.0.0.0", "10.0.9.77", "10.0.15.255"] {
        assert_eq!(firewall.run(&Ipv4::from(address).frame(&[])), PASS, "{address}");
    }
    assert_eq!(firewall.run(&Ipv4::from("10.0.16.0").frame(&[])), DROP);
    assert_eq!(firewall.sum("fw_allowed_hits", 4095, 0), 1);
    Ok(())
}
