//! New links, made by aya from a pinned program.

use crate::{pins, sys};
use aya::{
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, LinkError},
        tc::TcAttachOptions,
    },
    sys::SyscallError,
};
use aya_obj::programs::XdpAttachType;
use canopy_api::InterfaceName;
use std::{error::Error, io, os::fd::OwnedFd, path::Path};

/// Where a chain hangs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// XDP in the driver.
    XdpNative,
    /// XDP on the socket buffer.
    XdpGeneric,
    /// TCX ingress, before all that are there.
    TcxIngress,
    /// TCX egress, before all that are there.
    TcxEgress,
}

/// Attaches the program pinned at `prog` and pins the new link at `pin`, from where it is opened:
/// aya keeps a link's descriptor to itself. The caller moves the pin to where it belongs.
///
/// The errors are the kernel's for `BPF_LINK_CREATE`: `EBUSY` when the hook is taken (XDP),
/// `EOPNOTSUPP` when the driver has no native XDP, `EEXIST` when netlink-attached XDP is there in
/// another mode, `EINVAL` when there are no TCX links.
pub(crate) fn attach(
    prog: &Path,
    interface: &InterfaceName,
    ifindex: u32,
    place: Place,
    pin: &Path,
) -> io::Result<OwnedFd> {
    pins::remove_file(pin).map_err(io::Error::other)?;
    // Nearly all of it is the kernel's, which for XDP waits for a grace period.
    let link = sys::timed(|| match place {
        Place::XdpNative => xdp(prog, ifindex, XdpMode::Driver),
        Place::XdpGeneric => xdp(prog, ifindex, XdpMode::Skb),
        Place::TcxIngress => tcx(prog, interface, TcAttachType::Ingress),
        Place::TcxEgress => tcx(prog, interface, TcAttachType::Egress),
    })?;
    link.pin(pin).map_err(|error| as_io(&error))?;
    sys::obj_get(pin).inspect_err(|_| {
        // The pin would keep the link attached, and nobody would know.
        let _ = pins::remove_file(pin);
    })
}

fn xdp(prog: &Path, ifindex: u32, mode: XdpMode) -> io::Result<FdLink> {
    let mut program = Xdp::from_pin(prog, XdpAttachType::Interface).map_err(|e| as_io(&e))?;
    let id = program.attach_to_if_index(ifindex, mode).map_err(|error| refused(&error))?;
    let link = program.take_link(id).map_err(|error| as_io(&error))?;
    // Where the kernel knows no XDP links (before 5.9), aya falls back to netlink. Such a kernel
    // lacks what the composed program needs and does not get this far.
    link.try_into().map_err(|error: LinkError| as_io(&error))
}

fn tcx(prog: &Path, interface: &InterfaceName, hook: TcAttachType) -> io::Result<FdLink> {
    let mut program = SchedClassifier::from_pin(prog).map_err(|error| as_io(&error))?;
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program
        .attach_with_options(interface.as_str(), hook, first)
        .map_err(|error| refused(&error))?;
    let link = program.take_link(id).map_err(|error| as_io(&error))?;
    link.try_into().map_err(|error: LinkError| as_io(&error))
}

/// What the kernel said to an attempt to attach.
fn refused(error: &ProgramError) -> io::Error {
    match error {
        // aya tries netlink only after `EINVAL`.
        ProgramError::XdpError(_) => io::Error::from_raw_os_error(libc::EINVAL),
        other => as_io(other),
    }
}

/// The system's error within one of aya's, or else its text.
fn as_io(error: &(dyn Error + 'static)) -> io::Error {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let io = match error.downcast_ref::<SyscallError>() {
            Some(call) => Some(&call.io_error),
            None => error.downcast_ref::<io::Error>(),
        };
        if let Some(code) = io.and_then(io::Error::raw_os_error) {
            return io::Error::from_raw_os_error(code);
        }
        cause = error.source();
    }
    io::Error::other(error.to_string())
}
