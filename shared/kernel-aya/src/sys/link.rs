//! Links: attach, replace by compare-and-swap, detach, and what hangs on a TCX hook.

use super::{Cmd, address_mut, bpf, bpf_fd, length, obj_info, raw};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;

const BPF_LINK_TYPE_XDP: u32 = 6;
const BPF_LINK_TYPE_TCX: u32 = 11;

const BPF_F_REPLACE: u32 = 1 << 2;
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_AFTER: u32 = 1 << 4;
const BPF_F_LINK: u32 = 1 << 13;

const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Where a link goes.
#[derive(Clone, Copy, Debug)]
pub enum LinkTarget<'a> {
    /// XDP in the driver.
    XdpNative,
    /// XDP on the socket buffer.
    XdpGeneric,
    /// TCX ingress.
    TcxIngress(LinkOrder<'a>),
    /// TCX egress.
    TcxEgress(LinkOrder<'a>),
}

/// Where among the programs of a TCX hook.
#[derive(Clone, Copy, Debug)]
pub enum LinkOrder<'a> {
    /// Before all that are there.
    First,
    /// After all that are there.
    Last,
    /// Before this link.
    Before(BorrowedFd<'a>),
    /// After this link.
    After(BorrowedFd<'a>),
}

#[repr(C)]
struct LinkCreateAttr {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    /// TCX: `relative_fd`; zero for XDP.
    relative_fd: u32,
    padding: u32,
    /// TCX: zero accepts any.
    expected_revision: u64,
}

/// Attaches a program to an interface by a new link (`BPF_LINK_CREATE`).
///
/// `EBUSY` when the hook is taken (XDP), `EOPNOTSUPP` when the driver has no native XDP, `EEXIST`
/// when netlink-attached XDP is there in another mode or the same program is on the TCX hook.
pub fn link_create(prog: &impl AsFd, ifindex: u32, target: LinkTarget<'_>) -> io::Result<OwnedFd> {
    let tcx = |order: LinkOrder<'_>| match order {
        LinkOrder::First => (BPF_F_BEFORE, 0),
        LinkOrder::Last => (BPF_F_AFTER, 0),
        LinkOrder::Before(link) => (BPF_F_BEFORE | BPF_F_LINK, raw(&link)),
        LinkOrder::After(link) => (BPF_F_AFTER | BPF_F_LINK, raw(&link)),
    };
    let (attach_type, (flags, relative_fd)) = match target {
        LinkTarget::XdpNative => (BPF_XDP, (XDP_FLAGS_DRV_MODE, 0)),
        LinkTarget::XdpGeneric => (BPF_XDP, (XDP_FLAGS_SKB_MODE, 0)),
        LinkTarget::TcxIngress(order) => (BPF_TCX_INGRESS, tcx(order)),
        LinkTarget::TcxEgress(order) => (BPF_TCX_EGRESS, tcx(order)),
    };
    let mut attr = LinkCreateAttr {
        prog_fd: raw(prog),
        target_ifindex: ifindex,
        attach_type,
        flags,
        relative_fd,
        padding: 0,
        expected_revision: 0,
    };
    // SAFETY: the layout is the kernel's and holds no address.
    unsafe { bpf_fd(Cmd::LinkCreate, &mut attr) }
}

/// Attaches a program to what it was loaded for (`BPF_LINK_CREATE` for tracing, LSM and freplace).
pub fn link_create_tracing(prog: &impl AsFd, attach_type: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        prog_fd: u32,
        target_fd: u32,
        attach_type: u32,
        flags: u32,
    }
    let mut attr = Attr { prog_fd: raw(prog), target_fd: 0, attach_type, flags: 0 };
    // SAFETY: the layout is the kernel's and holds no address.
    unsafe { bpf_fd(Cmd::LinkCreate, &mut attr) }
}

/// Opens an iterator: reading what is returned runs the program of its link (`BPF_ITER_CREATE`).
pub fn iter_create(link: &impl AsFd) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
        flags: u32,
    }
    let mut attr = Attr { link_fd: raw(link), flags: 0 };
    // SAFETY: the layout is the kernel's and holds no address.
    unsafe { bpf_fd(Cmd::IterCreate, &mut attr) }
}

/// Puts `new` in the place of what a link runs (`BPF_LINK_UPDATE`). With `old`, only if that is
/// what it runs now, compared by the kernel in the same step: `EPERM` if it is not.
///
/// `ENOLINK` when the link was detached or its interface is gone.
pub fn link_update<P: AsFd>(link: &impl AsFd, new: &impl AsFd, old: Option<&P>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let mut attr = Attr {
        link_fd: raw(link),
        new_prog_fd: raw(new),
        flags: if old.is_some() { BPF_F_REPLACE } else { 0 },
        old_prog_fd: old.map_or(0, raw),
    };
    // SAFETY: the layout is the kernel's and holds no address.
    unsafe { bpf(Cmd::LinkUpdate, &mut attr) }.map(drop)
}

/// Detaches a link for good, whoever else holds it (`BPF_LINK_DETACH`).
pub fn link_detach(link: &impl AsFd) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
    }
    // SAFETY: the layout is the kernel's and holds no address.
    unsafe { bpf(Cmd::LinkDetach, &mut Attr { link_fd: raw(link) }) }.map(drop)
}

/// What the kernel says about a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Its id.
    pub id: u32,
    /// `enum bpf_link_type`.
    pub link_type: u32,
    /// Id of the program it runs.
    pub prog_id: u32,
    /// The interface, for XDP and TCX links: 0 when the link is dead (detached, or its interface
    /// went away).
    pub ifindex: Option<u32>,
}

#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    link_type: u32,
    id: u32,
    prog_id: u32,
    /// The union is 8-byte aligned.
    padding: u32,
    /// XDP and TCX: `ifindex` first.
    ifindex: u32,
    rest: [u32; 11],
}

/// What the kernel says about a link.
pub fn link_info(link: &impl AsFd) -> io::Result<LinkInfo> {
    let mut info = RawLinkInfo::default();
    // SAFETY: laid out as `struct bpf_link_info` with the XDP and TCX members of its union (both
    // start with `ifindex`). For other kinds the zeroes are null addresses with zero lengths.
    unsafe { obj_info(link, &mut info) }?;
    let on_interface = matches!(info.link_type, BPF_LINK_TYPE_XDP | BPF_LINK_TYPE_TCX);
    Ok(LinkInfo {
        id: info.id,
        link_type: info.link_type,
        prog_id: info.prog_id,
        ifindex: on_interface.then_some(info.ifindex),
    })
}

/// One program on a TCX hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcxProgram {
    /// Id of the program.
    pub prog_id: u32,
    /// Id of the link that holds it; 0 when it was attached without one.
    pub link_id: u32,
}

#[repr(C)]
struct QueryAttr {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// The list of a TCX hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcxList {
    /// Rises with each change of the list.
    pub revision: u64,
    /// The programs, in the order in which they run.
    pub programs: Vec<TcxProgram>,
}

/// The programs of a TCX hook, in the order in which they run (`BPF_PROG_QUERY`).
pub fn tcx_query(ifindex: u32, egress: bool) -> io::Result<Vec<TcxProgram>> {
    tcx_list(ifindex, egress).map(|list| list.programs)
}

/// The same, with the revision of the list.
pub fn tcx_list(ifindex: u32, egress: bool) -> io::Result<TcxList> {
    // BPF_MPROG_MAX: a hook has at most 64.
    let mut progs = [0_u32; 64];
    let mut links = [0_u32; 64];
    let mut attr = QueryAttr {
        target_ifindex: ifindex,
        attach_type: if egress { BPF_TCX_EGRESS } else { BPF_TCX_INGRESS },
        query_flags: 0,
        attach_flags: 0,
        prog_ids: address_mut(&mut progs),
        count: length(progs.len())?,
        padding: 0,
        prog_attach_flags: 0,
        link_ids: address_mut(&mut links),
        link_attach_flags: 0,
        revision: 0,
    };
    // SAFETY: the layout is the kernel's; both arrays have `count` places and outlive the call.
    unsafe { bpf(Cmd::ProgQuery, &mut attr) }?;
    let programs = progs
        .into_iter()
        .zip(links)
        .take(attr.count as usize)
        .map(|(prog_id, link_id)| TcxProgram { prog_id, link_id })
        .collect();
    Ok(TcxList { revision: attr.revision, programs })
}
