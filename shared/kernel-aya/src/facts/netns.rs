//! What needs an interface, tried on a veth pair in a network namespace that goes away with the
//! thread that made it.

use super::Seen;
use crate::{
    clsact, netif,
    sys::{self, LinkOrder, LinkTarget},
};
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
};
use std::{io, os::fd::OwnedFd, thread};

const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
/// `r0 = -1; exit`: `TCX_NEXT`.
const RETURN_NEXT: [u8; 16] = [0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x95, 0, 0, 0, 0, 0, 0, 0];

const VETH: &str = "probe0";
/// The number of no interface.
const NOWHERE: u32 = 0x7fff_ffff;

/// What was seen there.
pub(super) struct Network {
    pub(super) xdp_native: Seen,
    pub(super) xdp_generic: Seen,
    pub(super) tcx: Seen,
    pub(super) clsact: Seen,
}

/// Tries everything. A namespace takes `CAP_SYS_ADMIN`; without it the kernel is only asked.
pub(super) fn probe() -> Network {
    let all = |why: String| Network {
        xdp_native: Err(why.clone()),
        xdp_generic: Err(why.clone()),
        tcx: Err(why.clone()),
        clsact: Err(why),
    };
    let thread = thread::Builder::new().name("canopy-probe".to_owned()).spawn(|| {
        match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => Ok(in_namespace()),
            Err(Errno::EPERM) => Ok(asked()),
            Err(error) => Err(format!("make a network namespace to try in: {error}")),
        }
    });
    match thread.map(thread::JoinHandle::join) {
        Ok(Ok(Ok(network))) => network,
        Ok(Ok(Err(why))) => all(why),
        Ok(Err(_)) => all("the probe died".to_owned()),
        Err(error) => all(format!("start a thread: {error}")),
    }
}

fn in_namespace() -> Network {
    let veth = netif::add_veth(VETH, "probe1")
        .map_err(|error| format!("make a veth pair to try on: {error}"))
        .and_then(|()| {
            let devices = netif::devices().map_err(|error| error.to_string())?;
            devices
                .into_iter()
                .find(|device| device.name == VETH)
                .map(|device| device.index)
                .ok_or_else(|| "the veth pair is not there".to_owned())
        });
    // Loopback is in every namespace, and takes generic XDP and TCX.
    let loopback = 1;
    Network {
        xdp_native: veth.and_then(|veth| attach_xdp(veth, LinkTarget::XdpNative, "veth")),
        xdp_generic: attach_xdp(loopback, LinkTarget::XdpGeneric, "loopback"),
        tcx: attach_tcx(loopback),
        clsact: attach_clsact(loopback),
    }
}

/// What can be told without attaching. A TCX link on an interface that is not there is refused by
/// `ENODEV` where the kernel knows such links, else by `EINVAL`. For XDP it is `EINVAL` either way,
/// so that the kernel's version has to do (`bpf_xdp_link_attach` came with 5.9).
fn asked() -> Network {
    const UNTRIED: &str = "not tried: that takes cap_sys_admin";
    let xdp = || {
        let release = super::release();
        let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if version >= (5, 9) {
            Ok(format!("Linux {release} has such links ({UNTRIED})"))
        } else {
            Err(format!("Linux {release} has no such links"))
        }
    };
    let tcx = || -> io::Result<()> {
        let program = next()?;
        for target in
            [LinkTarget::TcxIngress(LinkOrder::First), LinkTarget::TcxEgress(LinkOrder::First)]
        {
            match sys::link_create(&program, NOWHERE, target) {
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(error) => return Err(error),
                Ok(_) => return Err(io::Error::other("an interface of that number is there")),
            }
        }
        Ok(())
    };
    Network {
        xdp_native: xdp(),
        xdp_generic: xdp(),
        tcx: tcx()
            .map(|()| format!("the kernel knows such links ({UNTRIED})"))
            .map_err(|error| format!("ask for a link: {error}")),
        clsact: Ok(format!("in Linux since 4.5, where NET_SCH_INGRESS is built ({UNTRIED})")),
    }
}

fn attach_xdp(index: u32, target: LinkTarget<'_>, on: &str) -> Seen {
    let seen = || -> io::Result<()> {
        let (one, other) = (super::pass()?, super::pass()?);
        let link = sys::link_create(&one, index, target)?;
        exchange(&link, &one, &other)
    };
    seen()
        .map(|()| format!("attached, replaced and detached by link on a {on} interface"))
        .map_err(|error| format!("attach to a {on} interface: {error}"))
}

/// A TC program that lets the next one run.
fn next() -> io::Result<OwnedFd> {
    let name = "canopy_probe";
    sys::prog_load(&sys::ProgLoad::new(BPF_PROG_TYPE_SCHED_CLS, &RETURN_NEXT, "GPL", name))
        .map_err(|rejected| rejected.error)
}

fn attach_clsact(index: u32) -> Seen {
    next()
        .and_then(|one| clsact::probe(index, &one, &next()?))
        .map(|()| "attached, replaced and removed as a filter on loopback, both ways".to_owned())
        .map_err(|error| format!("attach to loopback: {error}"))
}

fn attach_tcx(index: u32) -> Seen {
    let seen = || -> io::Result<()> {
        let (one, other) = (next()?, next()?);
        for target in
            [LinkTarget::TcxIngress(LinkOrder::First), LinkTarget::TcxEgress(LinkOrder::First)]
        {
            let link = sys::link_create(&one, index, target)?;
            exchange(&link, &one, &other)?;
        }
        Ok(())
    };
    seen()
        .map(|()| "attached, replaced and detached by link on loopback, both ways".to_owned())
        .map_err(|error| format!("attach to loopback: {error}"))
}

/// The whole life of a chain: replaced by compare-and-swap, and detached.
fn exchange(link: &OwnedFd, one: &OwnedFd, other: &OwnedFd) -> io::Result<()> {
    sys::link_update(link, other, Some(one))?;
    sys::link_detach(link)
}
