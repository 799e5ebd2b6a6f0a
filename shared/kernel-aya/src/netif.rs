//! Interfaces of the caller's network namespace, by rtnetlink: `/sys/class/net` shows the namespace
//! it was mounted in, which after `setns` is another one.

use crate::{
    netlink::{self, attribute, attributes, u32_at},
    pins::os,
};
use canopy_api::{InterfaceName, Netns};
use canopy_kernel::{Interface, KernelError};
use std::{
    io,
    os::fd::{AsFd, AsRawFd as _},
};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const IFLA_XDP_HW_PROG_ID: u16 = 7;

const NLA_F_NESTED: u16 = 1 << 15;

/// Bytes of `struct ifinfomsg`.
const HEADER: usize = 16;

/// An interface as rtnetlink tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) index: u32,
    pub(crate) mtu: u32,
    /// "veth", "tun"; empty for hardware and loopback.
    pub(crate) kind: String,
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) altnames: Vec<String>,
    /// Id of the XDP program in the driver; 0 for none.
    pub(crate) xdp_native: u32,
    /// Id of the generic XDP program; 0 for none.
    pub(crate) xdp_generic: u32,
    /// Id of the XDP program in the hardware; 0 for none.
    pub(crate) xdp_hardware: u32,
}

/// Every interface whose name Canopy can take.
pub(crate) fn interfaces(netns: Option<&Netns>) -> Result<Vec<Interface>, KernelError> {
    Ok(devices()?
        .into_iter()
        .filter_map(|device| {
            let name: InterfaceName = device.name.parse().ok()?;
            Some(Interface {
                netns: netns.cloned(),
                name,
                index: device.index,
                mtu: device.mtu,
                mac: device.mac,
                altnames: device.altnames,
            })
        })
        .collect())
}

/// The interface of that name.
pub(crate) fn device(name: &InterfaceName) -> Result<Option<Device>, KernelError> {
    let wanted = attribute(IFLA_IFNAME, format!("{name}\0").as_bytes());
    match netlink::get(RTM_GETLINK, &[vec![0; HEADER], wanted].concat(), RTM_NEWLINK, parse) {
        // The kernel looks among the alternative names as well.
        Ok(device) => Ok((device.name == name.as_str()).then_some(device)),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(os(format!("look at interface {name}"), error)),
    }
}

/// Every interface, in the order of their indices.
pub(crate) fn devices() -> Result<Vec<Device>, KernelError> {
    // An all-zero `struct ifinfomsg`: every interface.
    let mut found = netlink::list(RTM_GETLINK, &[0; HEADER], RTM_NEWLINK, parse)
        .map_err(|error| os("list interfaces".to_owned(), error))?;
    found.sort_by_key(|device| device.index);
    Ok(found)
}

/// Makes a veth pair (`RTM_NEWLINK`).
pub(crate) fn add_veth(one: &str, other: &str) -> io::Result<()> {
    const IFLA_INFO_DATA: u16 = 2;
    const VETH_INFO_PEER: u16 = 1;
    let named = |name: &str| attribute(IFLA_IFNAME, format!("{name}\0").as_bytes());
    // An all-zero `struct ifinfomsg` in front of the peer's attributes, as of our own.
    let peer = attribute(VETH_INFO_PEER, &[vec![0; HEADER], named(other)].concat());
    let info = [attribute(IFLA_INFO_KIND, b"veth\0"), attribute(IFLA_INFO_DATA, &peer)].concat();
    let body = [vec![0; HEADER], named(one), attribute(IFLA_LINKINFO, &info)].concat();
    Ok(netlink::change(RTM_NEWLINK, netlink::NLM_F_EXCL | netlink::NLM_F_CREATE, &body)?)
}

/// What the kernel says to a program that it does not take for native XDP. `BPF_LINK_CREATE` answers with
/// a number alone; the same step by rtnetlink has a reason with it. `None` where it has none.
pub(crate) fn why_no_native_xdp(ifindex: u32, prog: &impl AsFd) -> Option<String> {
    const RTM_SETLINK: u16 = 19;
    const IFLA_XDP_FD: u16 = 1;
    const IFLA_XDP_FLAGS: u16 = 3;
    const IFLA_XDP_EXPECTED_FD: u16 = 8;
    const XDP_FLAGS_UPDATE_IF_NOEXIST: u32 = 1;
    const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
    const XDP_FLAGS_REPLACE: u32 = 1 << 4;
    let fd = prog.as_fd().as_raw_fd();
    let set = |program: i32, flags: u32, expected: Option<i32>| {
        let mut xdp = [
            attribute(IFLA_XDP_FD, &program.to_ne_bytes()),
            attribute(IFLA_XDP_FLAGS, &(XDP_FLAGS_DRV_MODE | flags).to_ne_bytes()),
        ]
        .concat();
        if let Some(expected) = expected {
            xdp.extend(attribute(IFLA_XDP_EXPECTED_FD, &expected.to_ne_bytes()));
        }
        // `struct ifinfomsg`: the index is at 4.
        let header = [0, ifindex, 0, 0].map(u32::to_ne_bytes).concat();
        let nested = attribute(IFLA_XDP | NLA_F_NESTED, &xdp);
        netlink::change(RTM_SETLINK, 0, &[header, nested].concat())
    };
    if let Err(refusal) = set(fd, XDP_FLAGS_UPDATE_IF_NOEXIST, None) {
        return Some(refusal.message().to_owned()).filter(|why| !why.is_empty());
    }
    // It takes it now. Only a link is what we want, so it goes again, if it is still ours.
    if let Err(error) = set(-1, XDP_FLAGS_REPLACE, Some(fd)) {
        tracing::warn!(ifindex, %error, "a program that was tried stays attached");
    }
    None
}

fn parse(body: &[u8]) -> Device {
    // `struct ifinfomsg`: the index is at 4.
    let mut device = Device { index: u32_at(body, 4), ..Device::default() };
    for (kind, value) in attributes(body.get(HEADER..).unwrap_or_default()) {
        match kind {
            IFLA_IFNAME => device.name = netlink::text(value),
            IFLA_MTU => device.mtu = u32_at(value, 0),
            IFLA_LINKINFO => {
                let kind = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                device.kind = kind.map(|(_, kind)| netlink::text(kind)).unwrap_or_default();
            }
            // Loopback's is all zeroes.
            IFLA_ADDRESS => {
                device.mac = value.try_into().ok().filter(|mac: &[u8; 6]| *mac != [0; 6]);
            }
            IFLA_PROP_LIST => {
                let names = attributes(value).filter(|(kind, _)| *kind == IFLA_ALT_IFNAME);
                device.altnames = names.map(|(_, name)| netlink::text(name)).collect();
            }
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
    fn one_interface_is_found_by_its_name_alone() {
        let loopback = device(&"lo".parse().unwrap()).unwrap().unwrap();
        assert_eq!(Some(&loopback), devices().unwrap().iter().find(|device| device.index == 1));
        assert_eq!(device(&"no-such-one".parse().unwrap()).unwrap(), None);
    }

    #[test]
    fn a_cut_off_message_is_an_empty_device() {
        assert_eq!(parse(&[]), Device::default());
    }
}
