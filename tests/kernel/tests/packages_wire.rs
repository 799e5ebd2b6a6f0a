//! What a test run cannot show of the packages: lengths on the wire, segments, tags that the kernel
//! keeps beside a packet, and what Linux delivers behind XDP.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

use anyhow::Result;
use canopy_api::Hook;
use canopy_kernel::Kernel as _;
use canopy_kernel_tests::{
    live::Live,
    package::{member, number},
    packet::{self, Ipv4, Ipv6, ethernet, udp},
};
use canopy_test_support::{
    pair::{HOST_IP, HOST_LINK, HOST_MAC, PEER_IP, PEER_LINK, PEER_MAC, tcp_counter, udp_counter},
    traffic::{FrameSender, Segmented},
    wait_for,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(10);

/// A chain of one package on the pair's host end.
struct Wire {
    live: Live,
    hook: Hook,
    package: &'static str,
}

impl Wire {
    fn new(package: &'static str, hook: Hook, settings: &Value) -> Result<Self> {
        let live = Live::new();
        for (netns, link) in [(&live.pair.host, HOST_LINK), (&live.pair.peer, PEER_LINK)] {
            // No packet but the test's: IPv6 speaks by itself.
            netns.exec(&["sysctl", "-q", "-w", &format!("net.ipv6.conf.{link}.disable_ipv6=1")])?;
        }
        let (_, member) = member(package, hook, settings)?;
        live.attach(hook, vec![member]);
        Ok(Self { live, hook, package })
    }

    fn entries(&self, map: &str) -> Vec<(Vec<u8>, Vec<Vec<u8>>)> {
        let name = self.package.parse().unwrap();
        self.live.kernel.map_entries(&Live::key(self.hook), 1, &name, map, 1000).unwrap()
    }

    /// Eight bytes of a slot, summed over the CPUs.
    fn total(&self, map: &str, slot: u32, offset: usize) -> u64 {
        let entries = self.entries(map);
        let (_, values) = entries.iter().find(|(key, _)| *key == slot.to_ne_bytes()).unwrap();
        values.iter().map(|cpu| number(cpu, offset)).sum()
    }

    /// Sends in the direction that the chain sees.
    fn send(&self, send: impl FnOnce(&FrameSender) -> Result<()> + Send) -> Result<()> {
        let (netns, link) = match self.hook {
            Hook::TcEgress => (&self.live.pair.host, HOST_LINK),
            Hook::Xdp | Hook::TcIngress => (&self.live.pair.peer, PEER_LINK),
        };
        netns.run(|| send(&FrameSender::new(link)?))
    }
}

/// flowmeter on the pair.
struct Meter(Wire);

impl Meter {
    fn new(hook: Hook) -> Result<Self> {
        Ok(Self(Wire::new("flowmeter", hook, &json!({}))?))
    }

    /// Packets and bytes of all IP packets, as soon as so many packets are there.
    fn wait(&self, packets: u64) -> (u64, u64) {
        let counted = || (self.0.total("fm_totals", 0, 0), self.0.total("fm_totals", 0, 8));
        wait_for(SOON, "the packets to be counted", || match counted() {
            (count, bytes) if count >= packets => Ok((count, bytes)),
            counted => Err(counted),
        })
        .unwrap()
    }
}

#[test]
fn bytes_are_those_on_the_wire_at_ingress_and_egress() -> Result<()> {
    for hook in [Hook::TcIngress, Hook::TcEgress] {
        let meter = Meter::new(hook)?;
        let frames = [
            Ipv4::from("10.9.0.1").frame(&udp(1, 2, &[0; 100])),
            Ipv4::from("10.9.0.1").frame(&udp(1, 2, &[0; 1000])),
            Ipv6::from("2001:db8::7").frame(&udp(1, 2, &[0; 300])),
        ];
        meter.0.send(|sender| sender.send(&frames).map(drop))?;
        let bytes = frames.iter().map(Vec::len).sum::<usize>() as u64;
        assert_eq!(meter.wait(3), (3, bytes), "{hook}");
        let flows = meter.0.entries("fm_flows");
        assert_eq!(flows.iter().map(|(_, count)| number(&count[0], 8)).sum::<u64>(), bytes);
    }
    Ok(())
}

/// The kernel takes the outermost tag off before TC sees the packet.
#[test]
fn a_tag_beside_the_packet_is_among_its_bytes() -> Result<()> {
    let meter = Meter::new(Hook::TcIngress)?;
    let packet = Ipv4::from("10.9.0.1").packet(&udp(1, 2, &[0; 100]));
    let frames: Vec<_> = (0..=8)
        .map(|depth| ethernet(&vec![(packet::ETH_VLAN, 5); depth], packet::ETH_IPV4, &packet))
        .collect();
    meter.0.send(|sender| sender.send(&frames).map(drop))?;
    let bytes = frames.iter().map(Vec::len).sum::<usize>() as u64;
    assert_eq!(meter.wait(9), (9, bytes));
    assert_eq!(meter.0.entries("fm_flows").len(), 1);
    Ok(())
}

/// A TCP header of 32 bytes, as with time stamps, and a payload.
fn tcp(payload: usize) -> Vec<u8> {
    let mut bytes = vec![0; 32 + payload];
    bytes[..4].copy_from_slice(&[0x10, 0, 0x20, 0]);
    bytes[12] = 8 << 4;
    bytes[13] = 0x10;
    bytes[20..22].copy_from_slice(&[1, 1]);
    bytes
}

#[test]
fn a_segmented_buffer_is_all_its_packets_on_the_wire() -> Result<()> {
    for hook in [Hook::TcIngress, Hook::TcEgress] {
        let meter = Meter::new(hook)?;
        let tcp4 = Ipv4 { protocol: packet::TCP, ..Ipv4::from("10.9.0.1") };
        let tcp6 = Ipv6 { protocol: packet::TCP, ..Ipv6::from("2001:db8::7") };
        // Payload, size of a segment: no remainder, a remainder, a short last one.
        let (mut packets, mut bytes) = (0, 0);
        for (payload, size) in [(30_000, 1000), (10_001, 1448), (1449, 1448)] {
            let segments = u64::from(u32::div_ceil(payload, size));
            let payload = payload as usize;
            let size = u16::try_from(size)?;
            meter.0.send(|sender| {
                let frame = tcp4.frame(&tcp(payload));
                sender.send_segmented(&frame, Segmented::Tcp4, 34, 66, size)?;
                let frame = tcp6.frame(&tcp(payload));
                sender.send_segmented(&frame, Segmented::Tcp6, 54, 86, size)?;
                let frame = Ipv4::from("10.9.0.1").frame(&udp(1, 2, &vec![0; payload]));
                sender.send_segmented(&frame, Segmented::Udp, 34, 42, size)
            })?;
            packets += 3 * segments;
            bytes += 3 * payload as u64 + segments * (66 + 86 + 42);
            assert_eq!(meter.wait(packets), (packets, bytes), "{hook}, {payload} by {size}");
        }
    }
    Ok(())
}

#[test]
fn a_segmented_buffer_has_its_tag_in_every_packet() -> Result<()> {
    let meter = Meter::new(Hook::TcIngress)?;
    let tcp4 = Ipv4 { protocol: packet::TCP, ..Ipv4::from("10.9.0.1") }.packet(&tcp(5000));
    let frame = ethernet(&[(packet::ETH_VLAN, 5)], packet::ETH_IPV4, &tcp4);
    meter.0.send(|sender| sender.send_segmented(&frame, Segmented::Tcp4, 38, 70, 1000))?;
    assert_eq!(meter.wait(5), (5, 5 * 70 + 5000));
    Ok(())
}

/// A real connection with segmentation offload, both ways: each of its packets has 14 + 20 + 32 bytes
/// of headers, and the first one eight more of options.
#[test]
fn a_tcp_connection_adds_up_to_its_bytes_and_headers() -> Result<()> {
    const SENT: usize = 4_000_000;
    for hook in [Hook::TcIngress, Hook::TcEgress] {
        let meter = Meter::new(hook)?;
        let pair = &meter.0.live.pair;
        let listener = pair.host.run(|| Ok(TcpListener::bind((HOST_IP, 0))?))?;
        let port = listener.local_addr()?.port();
        let client = pair.peer.spawn(move || {
            let mut stream = TcpStream::connect((HOST_IP, port))?;
            stream.write_all(&vec![7; SENT])?;
            stream.shutdown(std::net::Shutdown::Write)?;
            Ok(stream.read_to_end(&mut Vec::new())?)
        })?;
        let (mut stream, _) = listener.accept()?;
        let mut received = Vec::new();
        stream.read_to_end(&mut received)?;
        stream.write_all(&received)?;
        drop(stream);
        assert_eq!(client.join().unwrap()?, SENT);
        // Its last acknowledgement.
        let flow = wait_for(SOON, "the flow to end", || {
            let flows = meter.0.entries("fm_flows");
            let tcp: Vec<_> = flows.iter().filter(|(key, _)| key[36] == packet::TCP).collect();
            match tcp.as_slice() {
                [(_, count)] if number(&count[0], 8) > SENT as u64 => {
                    Ok((number(&count[0], 0), number(&count[0], 8)))
                }
                other => Err(format!("{other:?}")),
            }
        })
        .unwrap();
        let (packets, bytes) = flow;
        let once = SENT as u64 + 66 * packets + 8;
        let again = pair.host.run(|| tcp_counter("RetransSegs"))?
            + pair.peer.run(|| tcp_counter("RetransSegs"))?;
        if again == 0 {
            assert_eq!(bytes, once, "{hook}: {packets} packets");
        } else {
            // A machine so busy that something was sent twice.
            assert!(bytes >= once, "{hook}: {packets} packets, {again} sent again");
        }
        assert!(packets >= (SENT / 1448) as u64, "{hook}: {packets} packets are too few");
    }
    Ok(())
}

/// A UDP packet to the host that Linux delivers, behind priority tags.
fn tagged(tags: &[(u16, u16)], source: std::net::Ipv4Addr) -> Vec<u8> {
    let mut packet =
        Ipv4 { source, destination: HOST_IP, ..Ipv4::default() }.packet(&udp(9, 9, b"x"));
    let sum: u32 =
        packet[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet(tags, packet::ETH_IPV4, &packet);
    frame[..6].copy_from_slice(&HOST_MAC);
    frame[6..12].copy_from_slice(&PEER_MAC);
    frame
}

/// UDP packets that reached the host's stack: nobody listens.
fn delivered(live: &Live) -> u64 {
    live.pair.host.run(|| udp_counter("NoPorts")).unwrap()
}

#[test]
fn linux_delivers_no_blocked_source_behind_any_tags() -> Result<()> {
    let stacks: Vec<Vec<(u16, u16)>> = (0..=40)
        .chain([100, 300])
        .flat_map(|depth| {
            let mixed = (0..depth)
                .map(|i| (if i % 2 == 0 { packet::ETH_VLAN } else { packet::ETH_QINQ }, 0))
                .collect();
            [vec![(packet::ETH_VLAN, 0); depth], vec![(packet::ETH_QINQ, 0); depth], mixed]
        })
        .collect();
    let frames = |source| stacks.iter().map(|tags| tagged(tags, source)).collect::<Vec<_>>();
    let settings = json!({ "blocked": [PEER_IP.to_string(), "10.77.9.0/24"] });
    let wire = Wire::new("firewall", Hook::Xdp, &settings)?;
    let every = stacks.len() as u64;

    // What a rule does not name is delivered, as far as tags are read.
    let readable = stacks.iter().filter(|tags| tags.len() <= 32).count() as u64;
    let other = frames("10.77.0.3".parse()?);
    wire.send(|sender| sender.send(&other).map(drop))?;
    wait_for(SOON, "what is not blocked to be delivered", || match delivered(&wire.live) {
        count if count >= readable => Ok(()),
        count => Err(count),
    })?;
    // Blocked by an address, and by a network.
    for source in [PEER_IP, "10.77.9.9".parse()?] {
        let blocked = frames(source);
        wire.send(|sender| sender.send(&blocked).map(drop))?;
    }
    let counted = || -> BTreeMap<&str, u64> {
        [("blocked", 0), ("unlisted", 2), ("malformed", 3)]
            .map(|(name, slot)| (name, wire.total("fw_totals", slot, 0)))
            .into()
    };
    let expected = BTreeMap::from([
        ("blocked", 2 * readable),
        ("unlisted", readable),
        ("malformed", 3 * (every - readable)),
    ]);
    wait_for(SOON, "every frame to be counted", || match counted() {
        counts if counts == expected => Ok(()),
        counts => Err((counts, expected.clone())),
    })?;
    assert_eq!(delivered(&wire.live), readable);
    Ok(())
}

/// The same frames without a chain: what the test above asserts would otherwise hold by itself.
#[test]
fn linux_delivers_behind_any_number_of_priority_tags() -> Result<()> {
    let live = Live::new();
    let frames: Vec<_> = [0, 1, 2, 3, 8, 32, 33, 300]
        .into_iter()
        .map(|depth| tagged(&vec![(packet::ETH_VLAN, 0); depth], PEER_IP))
        .collect();
    live.pair.peer.run(|| FrameSender::new(PEER_LINK)?.send(&frames).map(drop))?;
    wait_for(SOON, "all to be delivered", || match delivered(&live) {
        count if count >= frames.len() as u64 => Ok(()),
        count => Err(count),
    })?;
    Ok(())
}

/// Cut IP headers, which a test run at TC refuses to run.
#[test]
fn a_packet_cut_in_its_header_is_malformed_on_the_wire() -> Result<()> {
    let meter = Meter::new(Hook::TcIngress)?;
    let ipv4 = Ipv4::from("10.9.0.1").frame(b"");
    let ipv6 = Ipv6::from("2001:db8::7").frame(b"");
    let mut frames: Vec<_> = (15..34).map(|length| ipv4[..length].to_vec()).collect();
    frames.extend((15..54).map(|length| ipv6[..length].to_vec()));
    meter.0.send(|sender| sender.send(&frames).map(drop))?;
    let malformed = || (meter.0.total("fm_totals", 2, 0), meter.0.total("fm_totals", 2, 8));
    let bytes = frames.iter().map(Vec::len).sum::<usize>() as u64;
    wait_for(SOON, "all to be counted", || match malformed() {
        counted if counted == (frames.len() as u64, bytes) => Ok(()),
        counted => Err(counted),
    })?;
    assert_eq!(meter.wait(0), (0, 0));
    Ok(())
}
