//! Two namespaces joined by a veth pair: chains are attached at the `host` end, packets come from
//! the `peer` end.

use crate::{netns::Netns, wait::wait_for};
use anyhow::{Context as _, Result};
use std::{fs, net::Ipv4Addr, time::Duration};

/// Name of the interface in the host namespace.
pub const HOST_LINK: &str = "v0";
/// Name of the interface in the peer namespace.
pub const PEER_LINK: &str = "v1";
/// Address of the host end.
pub const HOST_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Address of the peer end.
pub const PEER_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// Hardware address of the host end.
pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Hardware address of the peer end.
pub const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Two namespaces, `v0` in one, `v1` in the other, addresses and neighbours set: the only packets
/// are the test's.
#[derive(Debug)]
pub struct Pair {
    /// Where chains are attached.
    pub host: Netns,
    /// Where packets come from.
    pub peer: Netns,
}

/// What an interface has counted (`/proc/net/dev`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets dropped on reception.
    pub rx_dropped: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets that could not be sent: for a veth, the other end's queue was full.
    pub tx_dropped: u64,
}

impl Pair {
    /// Makes it.
    pub fn new() -> Result<Self> {
        let pair = Self { host: Netns::new()?, peer: Netns::new()? };
        pair.plug()?;
        Ok(pair)
    }

    /// Makes the two interfaces, also anew after somebody deleted them; they are up when this
    /// returns.
    pub fn plug(&self) -> Result<()> {
        let peer_netns = self.peer.path();
        self.host.exec(&[
            "ip",
            "link",
            "add",
            HOST_LINK,
            "address",
            &mac(HOST_MAC),
            "type",
            "veth",
            "peer",
            "name",
            PEER_LINK,
            "address",
            &mac(PEER_MAC),
            "netns",
            &peer_netns,
        ])?;
        let ends = [
            (&self.host, HOST_LINK, HOST_IP, PEER_IP, PEER_MAC),
            (&self.peer, PEER_LINK, PEER_IP, HOST_IP, HOST_MAC),
        ];
        for (netns, link, own, other, other_mac) in ends {
            netns.exec(&["ip", "address", "add", &format!("{own}/24"), "dev", link])?;
            netns.exec(&["ip", "link", "set", link, "up"])?;
            netns.exec(&[
                "ip",
                "neighbour",
                "replace",
                &other.to_string(),
                "lladdr",
                &mac(other_mac),
                "dev",
                link,
                "nud",
                "permanent",
            ])?;
        }
        // The kernel notices the carrier in the background; until then it drops what is sent.
        for (netns, link, ..) in ends {
            wait_for(Duration::from_secs(10), "a veth link to be up", || {
                let seen = netns.exec(&["ip", "-oneline", "link", "show", link]);
                let seen = seen.map_err(|error| error.to_string())?;
                if seen.contains("state UP") && seen.contains("qdisc noqueue") {
                    Ok(())
                } else {
                    Err(seen)
                }
            })?;
        }
        Ok(())
    }

    /// What `v0` has counted.
    pub fn host_counters(&self) -> Result<LinkCounters> {
        self.host.run(|| link_counters(HOST_LINK))
    }

    /// What `v1` has counted.
    pub fn peer_counters(&self) -> Result<LinkCounters> {
        self.peer.run(|| link_counters(PEER_LINK))
    }
}

/// What an interface of the calling thread's namespace has counted.
pub fn link_counters(link: &str) -> Result<LinkCounters> {
    let path = "/proc/thread-self/net/dev";
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let row = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(link)?.strip_prefix(':'))
        .with_context(|| format!("{path} does not list {link}"))?;
    let numbers: Vec<u64> = row.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let column = |index: usize| numbers.get(index).copied().unwrap_or(0);
    Ok(LinkCounters {
        rx_packets: column(1),
        rx_dropped: column(3),
        tx_packets: column(9),
        tx_dropped: column(11),
    })
}

/// What UDP has counted in the calling thread's namespace (`/proc/net/snmp`), by the kernel's
/// name: `InDatagrams`, `NoPorts` (arrived, and nobody listens), `RcvbufErrors` …
pub fn udp_counter(name: &str) -> Result<u64> {
    snmp_counter("Udp", name)
}

/// The same of TCP: `RetransSegs` …
pub fn tcp_counter(name: &str) -> Result<u64> {
    snmp_counter("Tcp", name)
}

fn snmp_counter(protocol: &str, name: &str) -> Result<u64> {
    let path = "/proc/thread-self/net/snmp";
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let start = format!("{protocol}: ");
    let mut rows = text.lines().filter_map(|line| line.strip_prefix(start.as_str()));
    let (names, values) = (rows.next().unwrap_or_default(), rows.next().unwrap_or_default());
    names
        .split_whitespace()
        .zip(values.split_whitespace())
        .find(|(column, _)| *column == name)
        .and_then(|(_, value)| value.parse().ok())
        .with_context(|| format!("{path} has no {protocol} counter {name}"))
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::ping;

    #[test]
    fn the_two_ends_reach_each_other() {
        let pair = Pair::new().unwrap();
        assert_eq!(ping(&pair, 5).unwrap(), 5);
        let (host, peer) = (pair.host_counters().unwrap(), pair.peer_counters().unwrap());
        // Nothing but the test's packets.
        assert_eq!((host.rx_packets, peer.rx_packets), (5, 5), "{host:?} {peer:?}");
    }
}
