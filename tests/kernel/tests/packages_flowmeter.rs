//! The flowmeter package: which flow a packet belongs to and how much it adds, asserted from the
//! kernel's maps.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code: a failure is a panic")]

use anyhow::Result;
use canopy_api::Hook;
use canopy_kernel_tests::{
    package::{Loaded, number},
    packet::{self, Ipv4, Ipv6, ethernet, udp},
};
use serde_json::json;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    thread,
};

/// `TC_ACT_UNSPEC`, which is also `TCX_NEXT`.
const NEXT: i32 = -1;

/// Source, destination, source port, destination port, protocol.
type Flow = (IpAddr, IpAddr, u16, u16, u8);

/// Every flow the kernel remembers, with its packets and bytes.
fn flows(meter: &Loaded) -> BTreeMap<Flow, (u64, u64)> {
    meter.entries("fm_flows").iter().map(|(key, values)| (flow(key), count(&values[0]))).collect()
}

fn count(value: &[u8]) -> (u64, u64) {
    (number(value, 0), number(value, 8))
}

/// `struct canopy_tuple` of packet.h; of its last three bytes two are 0 in a key, and the third is the
/// version of IP.
fn flow(key: &[u8]) -> Flow {
    let address = |at: usize| {
        let bytes: [u8; 16] = key[at..at + 16].try_into().unwrap();
        Ipv6Addr::from(bytes).to_canonical()
    };
    let port = |at: usize| u16::from_be_bytes([key[at], key[at + 1]]);
    let source = address(0);
    assert_eq!(key[37..40], [0, 0, if source.is_ipv4() { 4 } else { 6 }]);
    (source, address(16), port(32), port(34), key[36])
}

/// A flow from `source` to the addresses that [`Ipv4::from`] and [`Ipv6::from`] send to.
fn from(source: &str, source_port: u16, destination_port: u16, protocol: u8) -> Flow {
    let source: IpAddr = source.parse().unwrap();
    let destination = if source.is_ipv4() { "192.0.2.1" } else { "2001:db8::1" };
    (source, destination.parse().unwrap(), source_port, destination_port, protocol)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    packets: u64,
    bytes: u64,
    fragments: u64,
    malformed: u64,
    other: u64,
    untracked: u64,
}

fn totals(meter: &Loaded) -> Totals {
    Totals {
        packets: meter.metric("packets"),
        bytes: meter.metric("bytes"),
        fragments: meter.metric("fragments"),
        malformed: meter.metric("malformed"),
        other: meter.metric("other"),
        untracked: meter.metric("untracked"),
    }
}

impl Totals {
    fn since(&self, before: &Self) -> Self {
        Self {
            packets: self.packets - before.packets,
            bytes: self.bytes - before.bytes,
            fragments: self.fragments - before.fragments,
            malformed: self.malformed - before.malformed,
            other: self.other - before.other,
            untracked: self.untracked - before.untracked,
        }
    }
}

fn meter() -> Result<Loaded> {
    Loaded::new("flowmeter", Hook::TcIngress, &json!({}))
}

/// A meter that sees one packet after another and forgets each.
struct Once(Loaded);

impl Once {
    fn new() -> Result<Self> {
        Ok(Self(meter()?))
    }

    /// Runs one packet; what it added to the totals, and the flow it went to, if any.
    #[track_caller]
    fn run(&self, packet: &[u8]) -> (Option<Flow>, Totals) {
        let before = totals(&self.0);
        assert_eq!(self.0.run(packet), NEXT);
        let flows = flows(&self.0);
        let map = self.0.map("fm_flows");
        for (key, _) in self.0.entries("fm_flows") {
            map.delete(&key).unwrap();
        }
        assert!(flows.len() <= 1, "{flows:?}");
        let flow = flows.into_iter().next().map(|(flow, count)| {
            assert_eq!(count, (1, packet.len() as u64));
            flow
        });
        (flow, totals(&self.0).since(&before))
    }

    /// The flow of a packet that has one.
    #[track_caller]
    fn flow(&self, packet: &[u8]) -> Flow {
        let (flow, totals) = self.run(packet);
        assert_eq!((totals.packets, totals.bytes), (1, packet.len() as u64));
        flow.unwrap()
    }

    #[track_caller]
    fn assert_malformed(&self, packet: &[u8]) {
        assert_eq!(self.run(packet), (None, Totals { malformed: 1, ..Totals::default() }));
    }
}

#[test]
fn flows_are_told_apart_and_summed() -> Result<()> {
    for hook in [Hook::TcIngress, Hook::TcEgress] {
        let meter = Loaded::new("flowmeter", hook, &json!({}))?;
        let mut expected: BTreeMap<Flow, (u64, u64)> = BTreeMap::new();
        let mut send = |flow: Flow, packet: Vec<u8>, times: u64| {
            for _ in 0..times {
                assert_eq!(meter.run(&packet), NEXT);
            }
            let count = expected.entry(flow).or_default();
            count.0 += times;
            count.1 += times * packet.len() as u64;
        };
        let ipv4 = Ipv4::from("10.0.0.1");
        let tcp = Ipv4 { protocol: packet::TCP, ..ipv4.clone() };
        let ipv6 = Ipv6::from("2001:db8::7");
        send(from("10.0.0.1", 1000, 53, packet::UDP), ipv4.frame(&udp(1000, 53, b"a")), 3);
        send(from("10.0.0.1", 1000, 53, packet::UDP), ipv4.frame(&udp(1000, 53, &[0; 700])), 2);
        send(from("10.0.0.1", 1001, 53, packet::UDP), ipv4.frame(&udp(1001, 53, b"a")), 1);
        send(from("10.0.0.1", 1000, 54, packet::UDP), ipv4.frame(&udp(1000, 54, b"a")), 1);
        send(from("10.0.0.1", 1000, 53, packet::TCP), tcp.frame(&udp(1000, 53, &[0; 12])), 4);
        send(
            from("10.0.0.2", 1000, 53, packet::UDP),
            Ipv4::from("10.0.0.2").frame(&udp(1000, 53, b"a")),
            1,
        );
        send(from("2001:db8::7", 9, 10, packet::UDP), ipv6.frame(&udp(9, 10, b"")), 5);
        assert_eq!(flows(&meter), expected);
        let (packets, bytes) =
            expected.values().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
        assert_eq!(totals(&meter), Totals { packets, bytes, ..Totals::default() });
        assert_eq!(meter.metric("flows"), 6);
        // The chain's accounting says the same: TC counts from -1, so unspec is slot 0.
        assert_eq!(meter.cells().verdicts()[0], packets);
    }
    Ok(())
}

#[test]
fn protocols_without_ports_have_ports_0() -> Result<()> {
    let once = Once::new()?;
    let echo = [8, 0, 0x12, 0x34, 0, 1, 0, 2];
    let icmp = Ipv4 { protocol: packet::ICMP, ..Ipv4::from("10.0.0.1") };
    assert_eq!(once.flow(&icmp.frame(&echo)), from("10.0.0.1", 0, 0, packet::ICMP));
    let icmpv6 = Ipv6 { protocol: packet::ICMPV6, ..Ipv6::from("fe80::1") };
    assert_eq!(once.flow(&icmpv6.frame(&echo)), from("fe80::1", 0, 0, packet::ICMPV6));
    // Behind ESP everything is encrypted; 59 says that nothing follows.
    for protocol in [packet::ESP, 59, 255] {
        let ipv6 = Ipv6 { protocol, ..Ipv6::from("fe80::1") };
        assert_eq!(once.flow(&ipv6.frame(&echo)), from("fe80::1", 0, 0, protocol));
    }
    // No payload at all.
    assert_eq!(once.flow(&icmp.frame(&[])), from("10.0.0.1", 0, 0, packet::ICMP));
    Ok(())
}

#[test]
fn every_protocol_with_ports_is_read() -> Result<()> {
    let once = Once::new()?;
    // TCP, UDP, DCCP, SCTP, UDP-Lite
    for protocol in [6, 17, 33, 132, 136] {
        let ipv4 = Ipv4 { protocol, ..Ipv4::from("10.0.0.1") };
        assert_eq!(once.flow(&ipv4.frame(&udp(7, 8, b""))), from("10.0.0.1", 7, 8, protocol));
    }
    Ok(())
}

#[test]
fn ports_lie_behind_tags_options_and_extension_headers() -> Result<()> {
    let once = Once::new()?;
    let body = udp(5000, 443, b"data");
    let ipv4 = Ipv4::from("10.0.0.1");
    let expected = from("10.0.0.1", 5000, 443, packet::UDP);
    for tags in [&[(packet::ETH_VLAN, 7)][..], &[(packet::ETH_QINQ, 9), (packet::ETH_VLAN, 7)]] {
        let frame = ethernet(tags, packet::ETH_IPV4, &ipv4.packet(&body));
        assert_eq!(once.flow(&frame), expected);
    }
    for words in 1..=10 {
        let options = Ipv4 { options: vec![1; words * 4], ..ipv4.clone() };
        assert_eq!(once.flow(&options.frame(&body)), expected);
    }

    let expected = from("fe80::1", 5000, 443, packet::UDP);
    let plain = || Ipv6::from("fe80::1");
    let chains = [
        plain(),
        plain().extension(packet::HOP_BY_HOP, packet::options_header(8)),
        plain().extension(packet::ROUTING, packet::options_header(24)),
        plain().extension(packet::DESTINATION, packet::options_header(2048)),
        // AH counts in other units than the rest.
        plain().extension(packet::AUTH, packet::auth_header(12)),
        plain().extension(packet::AUTH, packet::auth_header(24)),
        plain().extension(135, packet::options_header(16)),
        plain().extension(139, packet::options_header(16)),
        plain().extension(140, packet::options_header(16)),
        // All that RFC 8200 recommends, in its order, with an atomic fragment header.
        plain()
            .extension(packet::HOP_BY_HOP, packet::options_header(16))
            .extension(packet::DESTINATION, packet::options_header(8))
            .extension(packet::ROUTING, packet::options_header(40))
            .extension(packet::FRAGMENT, packet::fragment_header(0, false))
            .extension(packet::AUTH, packet::auth_header(16))
            .extension(packet::DESTINATION, packet::options_header(32)),
        (0..8).fold(plain(), |ipv6, _| {
            ipv6.extension(packet::DESTINATION, packet::options_header(8))
        }),
    ];
    for ipv6 in chains {
        let (flow, totals) = once.run(&ipv6.frame(&body));
        assert_eq!(flow, Some(expected), "{:?}", ipv6.extensions);
        // An atomic fragment is a whole packet.
        assert_eq!(totals.fragments, 0);
        let tagged = ethernet(&[(packet::ETH_VLAN, 1)], packet::ETH_IPV6, &ipv6.packet(&body));
        assert_eq!(once.flow(&tagged), expected);
    }
    Ok(())
}

#[test]
fn nine_extension_headers_are_one_too_many() -> Result<()> {
    let once = Once::new()?;
    let ipv6 = (0..9).fold(Ipv6::from("fe80::1"), |ipv6, _| {
        ipv6.extension(packet::DESTINATION, packet::options_header(8))
    });
    let flow = once.flow(&ipv6.frame(&udp(1, 2, b"")));
    assert_eq!(flow, from("fe80::1", 0, 0, packet::DESTINATION));
    Ok(())
}

#[test]
fn first_fragments_have_their_ports_and_later_ones_none() -> Result<()> {
    let once = Once::new()?;
    // The middle of a datagram, which looks like ports.
    let body = udp(4444, 5555, b"");
    let ipv4 = |offset, more| Ipv4 {
        fragment_offset: offset,
        more_fragments: more,
        ..Ipv4::from("10.0.0.1")
    };
    let ipv6 = |offset, more| {
        Ipv6::from("fe80::1").extension(packet::FRAGMENT, packet::fragment_header(offset, more))
    };
    let cases = [(0, true, 4444, 5555), (1, true, 0, 0), (185, false, 0, 0), (8191, false, 0, 0)];
    for (offset, more, source_port, destination_port) in cases {
        let (flow, totals) = once.run(&ipv4(offset, more).frame(&body));
        let expected = from("10.0.0.1", source_port, destination_port, packet::UDP);
        assert_eq!(flow, Some(expected));
        assert_eq!(totals.fragments, 1);
        let (flow, totals) = once.run(&ipv6(offset, more).frame(&body));
        let expected = from("fe80::1", source_port, destination_port, packet::UDP);
        assert_eq!(flow, Some(expected));
        assert_eq!(totals.fragments, 1);
        // A later fragment may be shorter than a header.
        if offset > 0 {
            once.flow(&ipv4(offset, more).frame(&[1]));
            once.flow(&ipv6(offset, more).frame(&[1]));
        }
    }
    // What follows a later fragment's header is the middle of something, even if the header says
    // it was a destination options header at the front.
    let later = ipv6(3, true).extension(packet::DESTINATION, packet::options_header(8));
    assert_eq!(once.flow(&later.frame(&body)), from("fe80::1", 0, 0, packet::DESTINATION));
    Ok(())
}

#[test]
fn fragments_of_a_datagram_share_at_most_two_flows() -> Result<()> {
    let meter = meter()?;
    let whole = Ipv4::from("10.0.0.1").frame(&udp(1, 2, &[0; 100]));
    let first = Ipv4 { more_fragments: true, ..Ipv4::from("10.0.0.1") }.frame(&udp(1, 2, &[0; 24]));
    let later = Ipv4 { fragment_offset: 4, ..Ipv4::from("10.0.0.1") }.frame(&[0; 16]);
    for packet in [&whole, &first, &later] {
        meter.run(packet);
    }
    let expected = BTreeMap::from([
        (from("10.0.0.1", 1, 2, packet::UDP), (2, (whole.len() + first.len()) as u64)),
        (from("10.0.0.1", 0, 0, packet::UDP), (1, later.len() as u64)),
    ]);
    assert_eq!(flows(&meter), expected);
    assert_eq!(totals(&meter).fragments, 2);
    Ok(())
}

#[test]
fn ethernet_padding_is_not_a_header() -> Result<()> {
    let once = Once::new()?;
    // Stated to end with its IP header, or three bytes later; padded to the least Ethernet takes.
    for length in [20, 23] {
        let short = Ipv4 { total_length: Some(length), ..Ipv4::from("10.0.0.1") };
        once.assert_malformed(&short.frame(&[0x77; 26]));
    }
    for length in [1, 3] {
        let short = Ipv6 { payload_length: Some(length), ..Ipv6::from("fe80::1") };
        once.assert_malformed(&short.frame(&[0x77; 26]));
    }
    // An extension header that reaches beyond the stated payload.
    let beyond = Ipv6 { payload_length: Some(8), ..Ipv6::from("fe80::1") }
        .extension(packet::HOP_BY_HOP, packet::options_header(16));
    once.assert_malformed(&beyond.frame(&udp(1, 2, b"")));
    Ok(())
}

#[test]
fn a_super_packet_states_no_length_and_is_read() -> Result<()> {
    let once = Once::new()?;
    // Segments gathered beyond 64 KiB (BIG TCP) leave 0 in both headers' length fields.
    let ipv4 = Ipv4 { total_length: Some(0), ..Ipv4::from("10.0.0.1") };
    assert_eq!(once.flow(&ipv4.frame(&udp(1, 2, b""))), from("10.0.0.1", 1, 2, packet::UDP));
    let ipv6 = Ipv6 { payload_length: Some(0), ..Ipv6::from("fe80::1") };
    assert_eq!(once.flow(&ipv6.frame(&udp(1, 2, b""))), from("fe80::1", 1, 2, packet::UDP));
    let jumbo = Ipv6 { payload_length: Some(0), ..Ipv6::from("fe80::1") }
        .extension(packet::HOP_BY_HOP, packet::options_header(8));
    assert_eq!(once.flow(&jumbo.frame(&udp(1, 2, b""))), from("fe80::1", 1, 2, packet::UDP));
    Ok(())
}

/// `struct __sk_buff` of linux/bpf.h, for a buffer that the stack segments.
fn segmented(segments: u32, size: u32) -> [u8; 192] {
    let mut context = [0_u8; 192];
    context[164..168].copy_from_slice(&segments.to_ne_bytes()); // gso_segs
    context[176..180].copy_from_slice(&size.to_ne_bytes()); // gso_size
    context
}

#[test]
fn segments_count_as_the_packets_they_are_on_the_wire() -> Result<()> {
    // Headers of 14 + 20 + 32 bytes, three packets of 1000, 1000 and 500 bytes.
    let mut tcp = vec![0; 32 + 2500];
    tcp[12] = 8 << 4;
    let packet = Ipv4 { protocol: packet::TCP, ..Ipv4::from("10.0.0.1") }.frame(&tcp);
    let bytes = 3 * (14 + 20 + 32) + 2500;
    // Where nobody has counted the segments yet, their number follows from their size.
    for segments in [3, 0] {
        let meter = meter()?;
        assert_eq!(meter.run_with(&packet, &segmented(segments, 1000)), NEXT);
        let expected = BTreeMap::from([(from("10.0.0.1", 0, 0, packet::TCP), (3, bytes))]);
        assert_eq!(flows(&meter), expected);
        assert_eq!(totals(&meter), Totals { packets: 3, bytes, ..Totals::default() });
    }
    Ok(())
}

#[test]
fn every_header_in_front_of_the_data_is_repeated() -> Result<()> {
    let meter = meter()?;
    let ipv6 = Ipv6::from("fe80::1").extension(packet::DESTINATION, packet::options_header(24));
    let tags = [(packet::ETH_QINQ, 9), (packet::ETH_VLAN, 7)];
    let packet = ethernet(&tags, packet::ETH_IPV6, &ipv6.packet(&udp(1, 2, &[0; 2501])));
    assert_eq!(meter.run_with(&packet, &segmented(6, 500)), NEXT);
    let bytes = 6 * (14 + 8 + 40 + 24 + 8) + 2501;
    assert_eq!(totals(&meter), Totals { packets: 6, bytes, ..Totals::default() });
    // A TCP header that states less than it has: nothing is repeated that cannot be read.
    let tcp = Ipv4 { protocol: packet::TCP, ..Ipv4::from("10.0.0.1") }.frame(&[0; 2500]);
    assert_eq!(meter.run_with(&tcp, &segmented(3, 1000)), NEXT);
    let expected = Totals { packets: 9, bytes: bytes + 2534, ..Totals::default() };
    assert_eq!(totals(&meter), expected);
    Ok(())
}

/// The longest header chain a test packet has: the flow is found as soon as the ports are there and
/// not before, wherever the packet is cut.
#[test]
fn a_packet_cut_anywhere_is_malformed_or_whole() -> Result<()> {
    let body = udp(5000, 443, b"data");
    let ipv6 = Ipv6::from("fe80::1")
        .extension(packet::HOP_BY_HOP, packet::options_header(16))
        .extension(packet::AUTH, packet::auth_header(16))
        .extension(packet::FRAGMENT, packet::fragment_header(0, true));
    let tags = [(packet::ETH_QINQ, 9), (packet::ETH_VLAN, 7)];
    let ipv4 = Ipv4 { options: vec![1; 12], ..Ipv4::from("10.0.0.1") };
    let frames = [
        (ethernet(&tags, packet::ETH_IPV6, &ipv6.packet(&body)), from("fe80::1", 5000, 443, 17)),
        (ethernet(&tags, packet::ETH_IPV4, &ipv4.packet(&body)), from("10.0.0.1", 5000, 443, 17)),
    ];
    for (frame, flow) in frames {
        let meter = meter()?;
        // 8 bytes of UDP header and 4 of data; the ports are the first 4 of these 12.
        let enough = frame.len() - 8;
        let mut bytes = 0;
        for length in 14..frame.len() {
            assert_eq!(meter.run(&frame[..length]), NEXT, "{length}");
            let whole = length + 1 - enough.min(length + 1);
            if length >= enough {
                bytes += length as u64;
            }
            let totals = totals(&meter);
            assert_eq!(totals.packets, whole as u64, "{length}");
            assert_eq!(totals.malformed, (length + 1 - 14 - whole) as u64, "{length}");
        }
        let packets = (frame.len() - enough) as u64;
        assert_eq!(flows(&meter), BTreeMap::from([(flow, (packets, bytes))]));
    }
    Ok(())
}

#[test]
fn what_is_not_ip_is_counted_apart() -> Result<()> {
    let meter = meter()?;
    assert_eq!(meter.run(&ethernet(&[], packet::ETH_ARP, &[0; 28])), NEXT);
    // Linux does not take this type for a tag.
    assert_eq!(meter.run(&ethernet(&[(0x9100, 1)], packet::ETH_IPV4, &[0x45; 28])), NEXT);
    assert_eq!(totals(&meter), Totals { other: 2, ..Totals::default() });
    assert_eq!(meter.metric("flows"), 0);
    Ok(())
}

#[test]
fn as_many_tags_as_are_read_hide_no_flow() -> Result<()> {
    let once = Once::new()?;
    let ipv6 = Ipv6::from("fe80::1")
        .extension(packet::HOP_BY_HOP, packet::options_header(8))
        .packet(&udp(5000, 443, b""));
    for depth in 0..=32 {
        let tags =
            vec![(if depth % 2 == 0 { packet::ETH_VLAN } else { packet::ETH_QINQ }, 0); depth];
        let flow = once.flow(&ethernet(&tags, packet::ETH_IPV6, &ipv6));
        assert_eq!(flow, from("fe80::1", 5000, 443, packet::UDP), "{depth} tags");
    }
    once.assert_malformed(&ethernet(&[(packet::ETH_VLAN, 0); 33], packet::ETH_IPV6, &ipv6));
    Ok(())
}

#[test]
fn ipv4_and_its_form_in_ipv6_are_two_flows() -> Result<()> {
    let meter = meter()?;
    let ipv6 = Ipv6 { destination: "::ffff:192.0.2.1".parse()?, ..Ipv6::from("::ffff:10.0.0.1") };
    for frame in [Ipv4::from("10.0.0.1").frame(&udp(1, 2, b"")), ipv6.frame(&udp(1, 2, b""))] {
        assert_eq!(meter.run(&frame), NEXT);
    }
    let mut families: Vec<_> = meter.entries("fm_flows").iter().map(|(key, _)| key[39]).collect();
    families.sort_unstable();
    assert_eq!(families, [4, 6]);
    Ok(())
}

#[test]
fn cpus_that_share_a_flow_lose_no_count() -> Result<()> {
    const SENDERS: u64 = 4;
    const EACH: u32 = 50_000;
    let meter = meter()?;
    let packet = Ipv4::from("10.0.0.1").frame(&udp(1, 2, b""));
    thread::scope(|scope| {
        for _ in 0..SENDERS {
            scope.spawn(|| meter.run_many(&packet, EACH));
        }
    });
    let packets = SENDERS * u64::from(EACH);
    let bytes = packets * packet.len() as u64;
    let expected = BTreeMap::from([(from("10.0.0.1", 1, 2, packet::UDP), (packets, bytes))]);
    assert_eq!(flows(&meter), expected);
    assert_eq!(totals(&meter), Totals { packets, bytes, ..Totals::default() });
    Ok(())
}

#[test]
fn more_flows_than_fit_forget_the_oldest() -> Result<()> {
    let meter = meter()?;
    let map = meter.map("fm_flows");
    let capacity = map.info().max_entries;
    for i in 0..capacity + 1000 {
        let mut key = [0_u8; 40];
        key[..4].copy_from_slice(&i.to_be_bytes());
        key[39] = 6;
        map.update(&key, &[0; 16], 0)?;
    }
    let packet = Ipv4::from("10.0.0.1").frame(&udp(1, 2, b""));
    meter.run(&packet);
    meter.run(&packet);
    let flows = meter.entries("fm_flows");
    assert!(flows.len() <= capacity as usize);
    let found = flows.iter().find(|(key, _)| flow(key) == from("10.0.0.1", 1, 2, packet::UDP));
    assert_eq!(count(&found.unwrap().1[0]), (2, 2 * packet.len() as u64));
    assert_eq!(totals(&meter).untracked, 0);
    Ok(())
}
