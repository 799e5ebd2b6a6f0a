//! What a test run cannot make: packets whose headers are not in the buffer's linear part.

use anyhow::Result;
use canopy_api::{Hook, ProgramName};
use canopy_kernel::Kernel as _;
use canopy_kernel_tests::{
    live::Live,
    package::{member, number},
    packet::{self, Ipv6, udp},
};
use canopy_test_support::{
    pair::{HOST_LINK, PEER_LINK},
    traffic::FrameSender,
};
use serde_json::json;

/// `TOTAL_MALFORMED` of flowmeter.bpf.c.
const MALFORMED: u32 = 2;

#[test]
fn flowmeter_reads_headers_beyond_the_linear_part() -> Result<()> {
    let live = Live::new();
    live.exec(&["ip", "link", "set", HOST_LINK, "mtu", "9000"]);
    live.pair.peer.exec(&["ip", "link", "set", PEER_LINK, "mtu", "9000"])?;
    let (_, member) = member("flowmeter", Hook::TcEgress, &json!({}))?;
    live.attach(Hook::TcEgress, vec![member]);

    let ipv6 = Ipv6::from("2001:db8::7")
        .extension(packet::DESTINATION, packet::options_header(64))
        .frame(&udp(4000, 53, &[0; 6000]));
    // Cut at the end of Ethernet, inside the IPv6 header, inside the extension header, before the
    // ports; and not at all before them.
    let cuts = [14, 30, 60, 118, 130];
    live.pair.host.run(|| {
        let sender = FrameSender::new(HOST_LINK)?;
        cuts.iter().try_for_each(|linear| sender.send_scattered(&ipv6, *linear))
    })?;

    let key = Live::key(Hook::TcEgress);
    let name: ProgramName = "flowmeter".parse()?;
    let entries = |map: &str| live.kernel.map_entries(&key, 1, &name, map, 100);
    let flows = entries("fm_flows")?;
    assert_eq!(flows.len(), 1, "{flows:?}");
    let (flow, counts) = &flows[0];
    assert_eq!(flow[32..37], [&4000_u16.to_be_bytes()[..], &53_u16.to_be_bytes(), &[17]].concat());
    let packets = cuts.len() as u64;
    assert_eq!(number(&counts[0], 0), packets);
    assert_eq!(number(&counts[0], 8), packets * ipv6.len() as u64);
    let totals = entries("fm_totals")?;
    let (_, malformed) =
        totals.iter().find(|(slot, _)| *slot == MALFORMED.to_ne_bytes()).expect("a slot");
    assert_eq!(malformed.iter().map(|cpu| number(cpu, 0)).sum::<u64>(), 0);
    Ok(())
}
