//! What the shipped packages make of a frame, written from their READMEs and from nothing else: the
//! tests compare the programs with it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ETHERNET: usize = 14;
const TAG: usize = 4;
/// Tags that are read.
pub const MAX_TAGS: usize = 32;
/// Extension headers that are followed.
const MAX_EXTENSIONS: usize = 8;

/// What a frame is, down to its IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A header ends too early or contradicts itself.
    Malformed,
    /// More tags than are read.
    TooManyTags,
    /// Not IP.
    Other,
    /// IP.
    Ip(Ip),
}

/// An IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Where the IPv4 payload, or what follows the fixed IPv6 header, begins.
    pub body: usize,
    /// Bytes of it that the header states; `None` where it does not say.
    pub stated: Option<usize>,
    /// Protocol, or next header.
    pub next: u8,
    /// Hop limit, or time to live.
    pub hop_limit: u8,
    /// IPv4: more fragments follow, and the offset of this one.
    pub fragment: (bool, u16),
}

/// Where a frame is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// At XDP.
    Xdp,
    /// At TC, where a stated length of 0 says nothing.
    Tc,
}

fn byte(frame: &[u8], at: usize) -> Option<u8> {
    frame.get(at).copied()
}

fn number(frame: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([byte(frame, at)?, byte(frame, at + 1)?]))
}

/// Reads a frame down to its IP header.
pub fn read(frame: &[u8], at: At) -> Frame {
    if frame.len() < ETHERNET {
        return Frame::Malformed;
    }
    let (mut position, mut tags) = (ETHERNET, 0);
    let ether_type = loop {
        // Of the Ethernet header, then of each tag, the last two bytes.
        let Some(ether_type) = number(frame, position - 2) else { return Frame::Malformed };
        if ether_type != 0x8100 && ether_type != 0x88a8 {
            break ether_type;
        }
        if tags == MAX_TAGS {
            return Frame::TooManyTags;
        }
        tags += 1;
        position += TAG;
        if frame.len() < position {
            return Frame::Malformed;
        }
    };
    let ip = match ether_type {
        0x0800 => read_ipv4(frame, position, at),
        0x86dd => read_ipv6(frame, position, at),
        _ => return Frame::Other,
    };
    ip.map_or(Frame::Malformed, Frame::Ip)
}

fn read_ipv4(frame: &[u8], start: usize, at: At) -> Option<Ip> {
    let header = frame.get(start..start + 20)?;
    let first = byte(header, 0)?;
    let length = usize::from(first & 15) * 4;
    let total = usize::from(number(header, 2)?);
    let says_nothing = at == At::Tc && total == 0;
    if first >> 4 != 4 || length < 20 || (total < length && !says_nothing) {
        return None;
    }
    frame.get(start..start + length)?;
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 4] = header.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets).into())
    };
    let fragment = number(header, 6)?;
    Some(Ip {
        source: address(12)?,
        destination: address(16)?,
        body: start + length,
        stated: (!says_nothing).then(|| total - length),
        next: byte(header, 9)?,
        hop_limit: byte(header, 8)?,
        fragment: (fragment & 0x2000 != 0, fragment & 0x1fff),
    })
}

fn read_ipv6(frame: &[u8], start: usize, at: At) -> Option<Ip> {
    let header = frame.get(start..start + 40)?;
    if byte(header, 0)? >> 4 != 6 {
        return None;
    }
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 16] = header.get(at..at + 16)?.try_into().ok()?;
        Some(Ipv6Addr::from(octets).into())
    };
    let payload = usize::from(number(header, 4)?);
    let next = byte(header, 6)?;
    let says_nothing = payload == 0 && (at == At::Tc || next == 0);
    Some(Ip {
        source: address(8)?,
        destination: address(24)?,
        body: start + 40,
        stated: (!says_nothing).then_some(payload),
        next,
        hop_limit: byte(header, 7)?,
        fragment: (false, 0),
    })
}

/// Counters of firewall, each frame is in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirewallCounter {
    /// By item number of `blocked`.
    Blocked(usize),
    /// By item number of `allowed`.
    Allowed(usize),
    /// No rule.
    Unlisted,
    /// Malformed.
    Malformed,
    /// Not IP.
    Other,
}

/// The settings of firewall.
#[derive(Clone, Debug, Default)]
pub struct Firewall {
    /// `blocked`
    pub blocked: Vec<(IpAddr, u8)>,
    /// `allowed`
    pub allowed: Vec<(IpAddr, u8)>,
    /// `drop_unlisted`
    pub drop_unlisted: bool,
    /// `drop_malformed`
    pub drop_malformed: bool,
}

impl Firewall {
    /// Whether a frame passes, and where it is counted.
    pub fn judge(&self, frame: &[u8]) -> (bool, FirewallCounter) {
        let malformed = (!self.drop_malformed && !self.drop_unlisted, FirewallCounter::Malformed);
        let ip = match read(frame, At::Xdp) {
            Frame::Malformed => return malformed,
            Frame::TooManyTags => return (false, FirewallCounter::Malformed),
            Frame::Other => return (true, FirewallCounter::Other),
            Frame::Ip(ip) => ip,
        };
        let blocked = longest(&self.blocked, ip.source);
        let allowed = longest(&self.allowed, ip.source);
        let blocks = match (blocked, allowed) {
            (Some((_, blocked)), Some((_, allowed))) => blocked > allowed,
            (blocked, None) => blocked.is_some(),
            (None, Some(_)) => false,
        };
        if let Some((item, _)) = blocked.filter(|_| blocks) {
            return (false, FirewallCounter::Blocked(item));
        }
        if ip.stated.is_some_and(|stated| stated > frame.len() - ip.body) {
            return malformed;
        }
        match allowed {
            Some((item, _)) => (true, FirewallCounter::Allowed(item)),
            None => (!self.drop_unlisted, FirewallCounter::Unlisted),
        }
    }
}

/// The item with the longest prefix that matches, and its length.
fn longest(list: &[(IpAddr, u8)], address: IpAddr) -> Option<(usize, u8)> {
    let matching = list.iter().enumerate().filter(|(_, (network, length))| {
        bits(*network).zip_same_family(&bits(address)).is_some_and(|(network, address, width)| {
            (0..*length).all(|bit| {
                let shift = width - 1 - u32::from(bit);
                (network >> shift) & 1 == (address >> shift) & 1
            })
        })
    });
    matching.map(|(item, (_, length))| (item, *length)).max_by_key(|(_, length)| *length)
}

/// An address as a number, and how many bits it has.
struct Bits(u128, u32);

fn bits(address: IpAddr) -> Bits {
    match address {
        IpAddr::V4(v4) => Bits(u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => Bits(v6.to_bits(), 128),
    }
}

impl Bits {
    fn zip_same_family(&self, other: &Self) -> Option<(u128, u128, u32)> {
        (self.1 == other.1).then_some((self.0, other.0, self.1))
    }
}

/// What a bucket of ratelimit belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// All frames with too many tags.
    TooManyTags,
    /// The neighbour discovery of an address.
    Neighbour(Ipv6Addr),
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 address, or the first bits of one.
    V6(Ipv6Addr),
}

/// The source of a frame; `None` where it is exempt.
pub fn source(frame: &[u8], ipv6_prefix: u32) -> Option<Source> {
    let ip = match read(frame, At::Xdp) {
        Frame::Malformed | Frame::Other => return None,
        Frame::TooManyTags => return Some(Source::TooManyTags),
        Frame::Ip(ip) => ip,
    };
    let address = match ip.source {
        IpAddr::V4(v4) => return Some(Source::V4(v4)),
        IpAddr::V6(v6) => v6,
    };
    if ip.next == 58
        && ip.hop_limit == 255
        && let (Some(133..=136), Some(0)) = (byte(frame, ip.body), byte(frame, ip.body + 1))
    {
        return Some(Source::Neighbour(address));
    }
    let segments = address.segments();
    let link_local = segments[0] & 0xffc0 == 0xfe80;
    let translated = segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0];
    if link_local || translated || ipv6_prefix >= 128 {
        return Some(Source::V6(address));
    }
    let kept = address.to_bits() >> (128 - ipv6_prefix) << (128 - ipv6_prefix);
    Some(Source::V6(Ipv6Addr::from_bits(kept)))
}

/// A flow of flowmeter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Protocol.
    pub protocol: u8,
}

/// What flowmeter makes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metered {
    /// Could not be read.
    Malformed,
    /// Not IP.
    Other,
    /// Its flow, and whether it is a fragment.
    Flow(Flow, bool),
}

/// What flowmeter makes of a packet that is one buffer, one packet, and has no tag beside it.
pub fn meter(frame: &[u8]) -> Metered {
    let ip = match read(frame, At::Tc) {
        Frame::Malformed | Frame::TooManyTags => return Metered::Malformed,
        Frame::Other => return Metered::Other,
        Frame::Ip(ip) => ip,
    };
    let (mut more, mut offset) = ip.fragment;
    let (mut protocol, mut position) = (ip.next, ip.body);
    let end = ip.stated.map_or(usize::MAX, |stated| ip.body + stated);
    if ip.source.is_ipv6() {
        for _ in 0..MAX_EXTENSIONS {
            let length = match (protocol, byte(frame, position + 1)) {
                (44, _) => 8,
                (51, Some(field)) => (usize::from(field) + 2) * 4,
                (0 | 43 | 60 | 135 | 139 | 140, Some(field)) => (usize::from(field) + 1) * 8,
                (0 | 43 | 51 | 60 | 135 | 139 | 140, None) => return Metered::Malformed,
                _ => break,
            };
            // No extension header has fewer than 8 bytes.
            let length = length.max(8);
            if frame.len() < position + length || end < position + length {
                return Metered::Malformed;
            }
            if protocol == 44 {
                let field = number(frame, position + 2).unwrap_or_default();
                more |= field & 1 != 0;
                offset |= field >> 3;
            }
            protocol = byte(frame, position).unwrap_or_default();
            position += length;
            if offset != 0 {
                break;
            }
        }
    }
    let mut ports = (0, 0);
    if offset == 0 && [6, 17, 33, 132, 136].contains(&protocol) {
        if end < position + 4 {
            return Metered::Malformed;
        }
        match (number(frame, position), number(frame, position + 2)) {
            (Some(source), Some(destination)) => ports = (source, destination),
            _ => return Metered::Malformed,
        }
    }
    let flow = Flow {
        source: ip.source,
        destination: ip.destination,
        source_port: ports.0,
        destination_port: ports.1,
        protocol,
    };
    Metered::Flow(flow, more || offset != 0)
}
