//! Frames to compare the packages with their reference on: a random walk through what a sender may
//! put on the wire, right and wrong, and every cut of some.

use crate::packet::{self, Ipv4, Ipv6, ethernet};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Extension headers, and numbers that are none but are easily taken for one.
const NEXT_HEADERS: [u8; 12] = [0, 43, 44, 51, 60, 135, 139, 140, 50, 59, 41, 4];
const PROTOCOLS: [u8; 12] = [6, 17, 33, 132, 136, 1, 58, 47, 4, 41, 50, 0];
const ETHER_TYPES: [u16; 9] =
    [0x0806, 0x88cc, 0x8864, 0x8847, 0x9100, 0x88e5, 0x0040, 0x0000, 0x22f3];
const TAG_TYPES: [u16; 2] = [packet::ETH_VLAN, packet::ETH_QINQ];
const V6_NETWORKS: [&str; 8] = [
    "2001:db8:1:2::",
    "2001:db8:1:3::",
    "2001:db9::",
    "fe80::",
    "febf:ffff::",
    "64:ff9b::",
    "::ffff:0:0",
    "::",
];

/// A source of frames that are the same for the same seed.
#[derive(Debug)]
pub struct Frames(StdRng);

impl Frames {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.0.random_range(0..100) < percent
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        *of.choose(&mut self.0).unwrap()
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.0.random()).collect()
    }

    /// One of few, so that rules and buckets are met again and again.
    pub fn ipv4(&mut self) -> Ipv4Addr {
        let [b, c, d] = [(); 3].map(|()| self.0.random_range(0..6_u8));
        let a = self.pick(&[10, 192, 203]);
        Ipv4Addr::new(a, b, c, d)
    }

    /// One of few, of the networks that some package treats in its own way.
    pub fn ipv6(&mut self) -> Ipv6Addr {
        let network: Ipv6Addr = self.pick(&V6_NETWORKS).parse().unwrap();
        let host: u16 = self.0.random_range(0..8);
        let part = if self.chance(80) { 0 } else { self.pick(&[16, 32, 48, 63, 64, 96]) };
        Ipv6Addr::from_bits(network.to_bits() ^ u128::from(host) ^ (1_u128 << part & !1))
    }

    fn tags(&mut self) -> Vec<(u16, u16)> {
        let count = match self.0.random_range(0..100) {
            0..40 => 0,
            40..90 => self.0.random_range(1..=8),
            90..96 => self.0.random_range(9..=31),
            _ => self.0.random_range(32..=35),
        };
        (0..count)
            .map(|_| (self.pick(&TAG_TYPES), if self.chance(70) { 0 } else { self.0.random() }))
            .collect()
    }

    /// The beginning of what the protocol carries, from nothing on.
    fn body(&mut self, protocol: u8) -> Vec<u8> {
        let ports = [1, 2, 53, 443];
        let (source, destination) = (self.pick(&ports), self.pick(&ports));
        let mut body = packet::udp(source, destination, &[]);
        if protocol == packet::ICMPV6 || self.chance(5) {
            let kind = self.pick(&[128, 132, 133, 134, 135, 136, 137]);
            let code = u8::from(self.chance(10));
            body.splice(..2, [kind, code]);
        }
        let more = self.0.random_range(0..40);
        body.extend(self.bytes(more));
        if self.chance(15) {
            body.truncate(self.0.random_range(0..8));
        }
        body
    }

    fn ipv4_packet(&mut self) -> Vec<u8> {
        let protocol = self.pick(&PROTOCOLS);
        let words = if self.chance(75) { 0 } else { self.0.random_range(1..=10) };
        let fragment = self.chance(20);
        let body = self.body(protocol);
        let right = 20 + words * 4 + body.len();
        Ipv4 {
            source: self.ipv4(),
            destination: Ipv4Addr::new(192, 0, 2, 1),
            protocol,
            options: self.bytes(words * 4),
            fragment_offset: if fragment { self.pick(&[0, 0, 1, 185, 8191]) } else { 0 },
            more_fragments: fragment && self.chance(70),
            total_length: self.chance(15).then(|| self.wrong_length(right)),
            first_byte: self.chance(4).then(|| self.0.random()),
        }
        .packet(&body)
    }

    /// A length near the right one, or far from it.
    fn wrong_length(&mut self, right: usize) -> u16 {
        let right = u16::try_from(right).unwrap();
        match self.0.random_range(0..4) {
            0 => right.saturating_add(self.0.random_range(1..4)),
            1 => right.saturating_sub(self.0.random_range(1..30)),
            2 => 0,
            _ => self.0.random(),
        }
    }

    fn extension(&mut self, number: u8) -> Vec<u8> {
        match number {
            packet::FRAGMENT => {
                let mut header =
                    packet::fragment_header(self.pick(&[0, 0, 0, 1, 100]), self.chance(40));
                // Its second byte is reserved, and no length.
                header[1] = if self.chance(20) { self.0.random() } else { 0 };
                header
            }
            packet::AUTH => {
                let words = self.0.random_range(2..8);
                packet::auth_header(words * 4)
            }
            _ => {
                let units = self.0.random_range(1..5);
                packet::options_header(units * 8)
            }
        }
    }

    fn ipv6_packet(&mut self) -> Vec<u8> {
        let protocol = if self.chance(25) { packet::ICMPV6 } else { self.pick(&PROTOCOLS) };
        let count = match self.0.random_range(0..100) {
            0..50 => 0,
            50..85 => self.0.random_range(1..=4),
            _ => self.0.random_range(5..=10),
        };
        let mut extensions = Vec::new();
        for _ in 0..count {
            // Mostly those that are followed, and fragments seldom: they end most chains.
            let known = if self.chance(90) { &NEXT_HEADERS[..8] } else { &NEXT_HEADERS[..] };
            let mut number = self.pick(known);
            if number == packet::FRAGMENT && self.chance(60) {
                number = packet::DESTINATION;
            }
            extensions.push((number, self.extension(number)));
        }
        let body = self.body(protocol);
        let right = extensions.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() + body.len();
        let hop_limit = self.pick(&[255, 255, 64, 254, 0]);
        let mut packet = Ipv6 {
            source: self.ipv6(),
            destination: "2001:db8::1".parse().unwrap(),
            extensions,
            protocol,
            payload_length: self.chance(15).then(|| self.wrong_length(right)),
            first_byte: self.chance(4).then(|| self.0.random()),
        }
        .packet(&body);
        packet[7] = hop_limit;
        packet
    }

    /// The next frame, of at least the 14 bytes that the kernel takes for one.
    pub fn next_frame(&mut self) -> Vec<u8> {
        let tags = self.tags();
        let (ether_type, packet) = match self.0.random_range(0..100) {
            0..45 => (packet::ETH_IPV4, self.ipv4_packet()),
            45..95 => (packet::ETH_IPV6, self.ipv6_packet()),
            _ => {
                let count = self.0.random_range(0..60);
                (self.pick(&ETHER_TYPES), self.bytes(count))
            }
        };
        let mut frame = ethernet(&tags, ether_type, &packet);
        if self.chance(10) {
            // Padding.
            let count = self.0.random_range(1..30);
            frame.extend(self.bytes(count));
        }
        if self.chance(20) {
            for _ in 0..self.0.random_range(1..4) {
                let at = self.0.random_range(12..frame.len());
                if self.chance(50) {
                    frame[at] ^= 1 << self.0.random_range(0..8);
                } else {
                    frame[at] = self.0.random();
                }
            }
        }
        if self.chance(20) {
            let length = self.0.random_range(14..=frame.len());
            frame.truncate(length);
        }
        frame
    }
}

/// Frames with the longest headers worth reading behind no tag to eight, each cut behind every byte.
pub fn cut_everywhere() -> Vec<Vec<u8>> {
    let body = packet::udp(5000, 443, &[0; 4]);
    let ipv4 = Ipv4::from("10.1.2.3");
    let ipv6 = || Ipv6::from("2001:db8:1:2::3");
    let advertisement = [136, 0, 0, 0, 0, 0, 0, 0];
    let mut neighbour = Ipv6 { protocol: packet::ICMPV6, ..ipv6() }.packet(&advertisement);
    neighbour[7] = 255;
    let packets = [
        (packet::ETH_IPV4, ipv4.packet(&body)),
        (packet::ETH_IPV4, Ipv4 { options: vec![1; 40], ..ipv4.clone() }.packet(&body)),
        (packet::ETH_IPV4, Ipv4 { fragment_offset: 9, ..ipv4 }.packet(&body)),
        (packet::ETH_IPV6, ipv6().packet(&body)),
        (packet::ETH_IPV6, neighbour),
        (
            packet::ETH_IPV6,
            ipv6()
                .extension(packet::HOP_BY_HOP, packet::options_header(16))
                .extension(packet::ROUTING, packet::options_header(24))
                .extension(packet::FRAGMENT, packet::fragment_header(0, true))
                .extension(packet::AUTH, packet::auth_header(20))
                .packet(&body),
        ),
    ];
    let mut frames = Vec::new();
    for depth in 0..=8 {
        let tags: Vec<_> = (0..depth).map(|i| (TAG_TYPES[i % 2], 0)).collect();
        for (ether_type, packet) in &packets {
            let frame = ethernet(&tags, *ether_type, packet);
            frames.extend((14..=frame.len()).map(|length| frame[..length].to_vec()));
        }
    }
    frames
}
