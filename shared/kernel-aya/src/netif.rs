//! Interfaces of the caller's network namespace, by rtnetlink: `/sys/class/net` shows the namespace
//! it was mounted in, which after `setns` is another one.

use crate::pins::os;
use canopy_api::InterfaceName;
use canopy_kernel::{Interface, KernelError};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;

const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const IFLA_XDP_HW_PROG_ID: u16 = 7;
/// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER` are flags in an attribute's type.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// Bytes of `struct nlmsghdr` and of `struct ifinfomsg`.
const HEADER: usize = 16;

/// An interface as rtnetlink tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) index: u32,
    pub(crate) mtu: u32,
    /// Id of the XDP program in the driver; 0 for none.
    pub(crate) xdp_native: u32,
    /// Id of the generic XDP program; 0 for none.
    pub(crate) xdp_generic: u32,
    /// Id of the XDP program in the hardware; 0 for none.
    pub(crate) xdp_hardware: u32,
}

/// Every interface whose name Canopy can take.
pub(crate) fn interfaces() -> Result<Vec<Interface>, KernelError> {
    Ok(devices()?
        .into_iter()
        .filter_map(|device| {
            let name: InterfaceName = device.name.parse().ok()?;
            Some(Interface { name, index: device.index, mtu: device.mtu })
        })
        .collect())
}

/// The interface of that name.
pub(crate) fn device(name: &InterfaceName) -> Result<Option<Device>, KernelError> {
    Ok(devices()?.into_iter().find(|device| device.name == name.as_str()))
}

/// Every interface, in the order of their indices.
pub(crate) fn devices() -> Result<Vec<Device>, KernelError> {
    // A list that changed while it was read is read again; a host whose interfaces never stand
    // still gets the last one.
    let mut found = Vec::new();
    for _ in 0..8 {
        let (devices, whole) = dump().map_err(|error| os("list interfaces".to_owned(), error))?;
        found = devices;
        if whole {
            break;
        }
    }
    found.sort_by_key(|device| device.index);
    Ok(found)
}

/// Makes a veth pair (`RTM_NEWLINK`).
pub(crate) fn add_veth(one: &str, other: &str) -> io::Result<()> {
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_INFO_KIND: u16 = 1;
    const IFLA_INFO_DATA: u16 = 2;
    const VETH_INFO_PEER: u16 = 1;
    const NLM_F_ACK: u16 = 4;
    const NLM_F_EXCL: u16 = 0x200;
    const NLM_F_CREATE: u16 = 0x400;
    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }
    let named = |name: &str| attribute(IFLA_IFNAME, format!("{name}\0").as_bytes());
    // An all-zero `struct ifinfomsg` in front of the peer's attributes, as of our own.
    let peer = attribute(VETH_INFO_PEER, &[vec![0; HEADER], named(other)].concat());
    let info = [attribute(IFLA_INFO_KIND, b"veth\0"), attribute(IFLA_INFO_DATA, &peer)].concat();
    let body = [vec![0; HEADER], named(one), attribute(IFLA_LINKINFO, &info)].concat();

    let netlink =
        request(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK | NLM_F_EXCL | NLM_F_CREATE, &body)?;
    let mut buffer = vec![0; 4096];
    let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    match Message::first(buffer.get(..length).unwrap_or_default()) {
        Some(Message { kind: NLMSG_ERROR, body, .. }) => match u32_at(body, 0).cast_signed() {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        },
        _ => Err(io::Error::other("rtnetlink gave no answer")),
    }
}

/// Sends a request; its answers come from the socket returned.
fn request(kind: u16, flags: u16, body: &[u8]) -> io::Result<OwnedFd> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(u32::try_from(HEADER + body.len()).map_err(io::Error::other)?.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence number and port: one request a socket, so neither matters.
    message.resize(HEADER, 0);
    message.extend(body);
    sendto(netlink.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    Ok(netlink)
}

fn dump() -> io::Result<(Vec<Device>, bool)> {
    // An all-zero `struct ifinfomsg`: every interface.
    let netlink = request(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, &[0; HEADER])?;
    let mut devices = Vec::new();
    let mut whole = true;
    // The kernel fills at most 32 KiB a read of a dump.
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some(message) = Message::first(rest) {
            whole &= message.flags & NLM_F_DUMP_INTR == 0;
            match message.kind {
                NLMSG_DONE => return Ok((devices, whole)),
                NLMSG_ERROR => {
                    let errno = u32_at(message.body, 0).cast_signed();
                    return Err(io::Error::from_raw_os_error(-errno));
                }
                RTM_NEWLINK => devices.push(parse(message.body)),
                _ => {}
            }
            rest = rest.get(message.stride..).unwrap_or_default();
        }
    }
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    body: &'a [u8],
    stride: usize,
}

impl<'a> Message<'a> {
    fn first(bytes: &'a [u8]) -> Option<Self> {
        let length = u32_at(bytes, 0) as usize;
        let body = bytes.get(HEADER..length)?;
        Some(Self {
            kind: u16_at(bytes, 4),
            flags: u16_at(bytes, 6),
            body,
            stride: length.next_multiple_of(4),
        })
    }
}

fn parse(body: &[u8]) -> Device {
    // `struct ifinfomsg`: the index is at 4.
    let mut device = Device { index: u32_at(body, 4), ..Device::default() };
    for (kind, value) in attributes(body.get(HEADER..).unwrap_or_default()) {
        match kind {
            IFLA_IFNAME => {
                let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
                device.name =
                    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned();
            }
            IFLA_MTU => device.mtu = u32_at(value, 0),
            IFLA_XDP => {
                for (kind, value) in attributes(value) {
                    match kind {
                        IFLA_XDP_DRV_PROG_ID => device.xdp_native = u32_at(value, 0),
                        IFLA_XDP_SKB_PROG_ID => device.xdp_generic = u32_at(value, 0),
                        IFLA_XDP_HW_PROG_ID => device.xdp_hardware = u32_at(value, 0),
                        // IFLA_XDP_ATTACHED and IFLA_XDP_PROG_ID say the same, less exactly.
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    device
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0));
        let value = bytes.get(4..length)?;
        let kind = u16_at(bytes, 2) & NLA_TYPE_MASK;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u16::from_ne_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_listed() {
        let devices = devices().unwrap();
        let loopback = devices.iter().find(|device| device.name == "lo").unwrap();
        assert_eq!(loopback.index, 1);
        assert!(loopback.mtu >= 1500, "{loopback:?}");
    }

    #[test]
    fn a_cut_off_message_is_no_message() {
        assert!(Message::first(&[]).is_none());
        assert!(Message::first(&[255, 0, 0, 0, 16, 0, 0, 0]).is_none());
        assert!(attributes(&[1, 0, 3, 0]).next().is_none());
        assert_eq!(parse(&[]), Device::default());
    }
}
