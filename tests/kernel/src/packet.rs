//! Packets made by hand, byte by byte, so that a test can also make the ones nobody should send.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Ethernet: IPv4.
pub const ETH_IPV4: u16 = 0x0800;
/// Ethernet: ARP.
pub const ETH_ARP: u16 = 0x0806;
/// Ethernet: a customer's VLAN tag (802.1Q).
pub const ETH_VLAN: u16 = 0x8100;
/// Ethernet: a service provider's VLAN tag (802.1ad).
pub const ETH_QINQ: u16 = 0x88a8;
/// Ethernet: IPv6.
pub const ETH_IPV6: u16 = 0x86dd;

/// IP protocol: IPv6 hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// IP protocol: ICMP.
pub const ICMP: u8 = 1;
/// IP protocol: TCP.
pub const TCP: u8 = 6;
/// IP protocol: UDP.
pub const UDP: u8 = 17;
/// IP protocol: IPv6 routing header.
pub const ROUTING: u8 = 43;
/// IP protocol: IPv6 fragment header.
pub const FRAGMENT: u8 = 44;
/// IP protocol: ESP, encrypted.
pub const ESP: u8 = 50;
/// IP protocol: authentication header.
pub const AUTH: u8 = 51;
/// IP protocol: ICMP for IPv6.
pub const ICMPV6: u8 = 58;
/// IP protocol: IPv6 destination options.
pub const DESTINATION: u8 = 60;

/// An Ethernet frame around `payload`, with the VLAN tags given as (type of the tag, VLAN id),
/// outermost first.
pub fn ethernet(tags: &[(u16, u16)], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1];
    for (tag, vlan) in tags {
        frame.extend(tag.to_be_bytes());
        frame.extend(vlan.to_be_bytes());
    }
    frame.extend(ether_type.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IPv4 header; [`Default`] is a UDP packet of no one to no one.
#[derive(Clone, Debug)]
pub struct Ipv4 {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// IP protocol.
    pub protocol: u8,
    /// Options; a multiple of 4 bytes, 40 at most.
    pub options: Vec<u8>,
    /// Offset of the fragment, in units of 8 bytes.
    pub fragment_offset: u16,
    /// More fragments follow.
    pub more_fragments: bool,
    /// Instead of the true total length.
    pub total_length: Option<u16>,
    /// Instead of the true version and header length.
    pub first_byte: Option<u8>,
}

impl Default for Ipv4 {
    fn default() -> Self {
        Self {
            source: Ipv4Addr::UNSPECIFIED,
            destination: Ipv4Addr::UNSPECIFIED,
            protocol: UDP,
            options: Vec::new(),
            fragment_offset: 0,
            more_fragments: false,
            total_length: None,
            first_byte: None,
        }
    }
}

impl Ipv4 {
    /// From `source` to 192.0.2.1.
    pub fn from(source: &str) -> Self {
        Self {
            source: source.parse().unwrap(),
            destination: Ipv4Addr::new(192, 0, 2, 1),
            ..Self::default()
        }
    }

    /// The packet, without a link layer.
    pub fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let header = 20 + self.options.len();
        let total = u16::try_from(header + payload.len()).unwrap();
        let words = u8::try_from(header / 4).unwrap();
        let mut packet = vec![self.first_byte.unwrap_or(0x40 | words), 0];
        packet.extend(self.total_length.unwrap_or(total).to_be_bytes());
        packet.extend([0x12, 0x34]);
        let flags = if self.more_fragments { 0x2000 } else { 0 };
        packet.extend((self.fragment_offset | flags).to_be_bytes());
        packet.extend([64, self.protocol, 0, 0]);
        packet.extend(self.source.octets());
        packet.extend(self.destination.octets());
        packet.extend(&self.options);
        packet.extend(payload);
        packet
    }

    /// The packet in an untagged frame.
    pub fn frame(&self, payload: &[u8]) -> Vec<u8> {
        ethernet(&[], ETH_IPV4, &self.packet(payload))
    }
}

/// An IPv6 header and the extension headers behind it.
#[derive(Clone, Debug)]
pub struct Ipv6 {
    /// Source address.
    pub source: Ipv6Addr,
    /// Destination address.
    pub destination: Ipv6Addr,
    /// Extension headers: their protocol number, and their bytes, in which the first (next header)
    /// is filled in.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// What follows the last.
    pub protocol: u8,
    /// Instead of the true payload length.
    pub payload_length: Option<u16>,
    /// Instead of the version and traffic class.
    pub first_byte: Option<u8>,
}

impl Ipv6 {
    /// A UDP packet from `source` to `2001:db8::1`.
    pub fn from(source: &str) -> Self {
        Self {
            source: source.parse().unwrap(),
            destination: "2001:db8::1".parse().unwrap(),
            extensions: Vec::new(),
            protocol: UDP,
            payload_length: None,
            first_byte: None,
        }
    }

    /// With one more extension header.
    #[must_use]
    pub fn extension(mut self, protocol: u8, bytes: Vec<u8>) -> Self {
        self.extensions.push((protocol, bytes));
        self
    }

    /// The packet, without a link layer.
    pub fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let mut numbers: Vec<u8> = self.extensions.iter().map(|(number, _)| *number).collect();
        numbers.push(self.protocol);
        let mut rest = Vec::new();
        for ((_, bytes), next) in self.extensions.iter().zip(&numbers[1..]) {
            let start = rest.len();
            rest.extend(bytes);
            rest[start] = *next;
        }
        rest.extend(payload);
        let length = u16::try_from(rest.len()).unwrap();
        let mut packet = vec![self.first_byte.unwrap_or(0x60), 0, 0, 0];
        packet.extend(self.payload_length.unwrap_or(length).to_be_bytes());
        packet.extend([numbers[0], 64]);
        packet.extend(self.source.octets());
        packet.extend(self.destination.octets());
        packet.extend(rest);
        packet
    }

    /// The packet in an untagged frame.
    pub fn frame(&self, payload: &[u8]) -> Vec<u8> {
        ethernet(&[], ETH_IPV6, &self.packet(payload))
    }
}

/// An extension header of `octets` bytes, a multiple of 8, with its length field.
pub fn options_header(octets: usize) -> Vec<u8> {
    let mut bytes = vec![0; octets];
    bytes[1] = u8::try_from(octets / 8 - 1).unwrap();
    bytes
}

/// An authentication header of `octets` bytes, a multiple of 4, with its length field.
pub fn auth_header(octets: usize) -> Vec<u8> {
    let mut bytes = vec![0; octets];
    bytes[1] = u8::try_from(octets / 4 - 2).unwrap();
    bytes
}

/// A fragment header; the offset in units of 8 bytes.
pub fn fragment_header(offset: u16, more: bool) -> Vec<u8> {
    let mut bytes = vec![0, 0];
    bytes.extend((offset << 3 | u16::from(more)).to_be_bytes());
    bytes.extend([0xde, 0xad, 0xbe, 0xef]);
    bytes
}

/// A UDP datagram (TCP, SCTP and the rest begin with the same two ports).
pub fn udp(source_port: u16, destination_port: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut datagram = Vec::new();
    for field in [source_port, destination_port, length, 0] {
        datagram.extend(field.to_be_bytes());
    }
    datagram.extend(payload);
    datagram
}
