//! Packets made by hand.

use crate::pair::{HOST_IP, HOST_MAC, PEER_IP, PEER_MAC};
use std::net::Ipv4Addr;

/// A UDP packet over IPv4 from the peer to the host, as a whole Ethernet frame.
#[derive(Clone, Copy, Debug)]
pub struct Udp4 {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub port: u16,
    /// Bytes after the UDP header.
    pub payload: usize,
}

impl Udp4 {
    /// From the peer to a port of the host, 18 bytes of payload: the smallest frame, 60 bytes.
    pub fn to_port(port: u16) -> Self {
        Self { source: PEER_IP, destination: HOST_IP, source_port: 40_000, port, payload: 18 }
    }

    /// The frame. Its UDP checksum is 0: not given.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = Vec::with_capacity(42 + self.payload);
        frame.extend(HOST_MAC);
        frame.extend(PEER_MAC);
        frame.extend([0x08, 0x00]);
        let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes();
        let mut ip = vec![0x45, 0];
        ip.extend(length(28 + self.payload));
        // Identification, flags: do not fragment.
        ip.extend([0, 0, 0x40, 0]);
        // Time to live, UDP, checksum to come.
        ip.extend([64, 17, 0, 0]);
        ip.extend(self.source.octets());
        ip.extend(self.destination.octets());
        let [high, low] = checksum(&ip).to_be_bytes();
        for (at, byte) in [(10, high), (11, low)] {
            if let Some(place) = ip.get_mut(at) {
                *place = byte;
            }
        }
        frame.extend(ip);
        frame.extend(self.source_port.to_be_bytes());
        frame.extend(self.port.to_be_bytes());
        frame.extend(length(8 + self.payload));
        frame.extend([0, 0]);
        frame.resize(42 + self.payload, 0);
        frame
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
            [high] => u32::from(*high) << 8,
            _ => 0,
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_sums_to_zero_with_its_checksum() {
        let frame = Udp4::to_port(80).frame();
        assert_eq!(frame.len(), 60);
        assert_eq!(checksum(&frame[14..34]), 0);
    }
}
