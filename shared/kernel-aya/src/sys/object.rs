//! BTF, pins and ids: what is the same for every kind of kernel object.

use super::{Cmd, Rejected, address, address_mut, bpf, bpf_fd, length, obj_info, raw};
use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// A kind of kernel object that has ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A program.
    Prog,
    /// A map.
    Map,
    /// Type information.
    Btf,
    /// A link.
    Link,
}

/// What the kernel says about loaded type information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BtfInfo {
    /// Its id.
    pub id: u32,
    /// Its size, bytes.
    pub size: u32,
}

#[repr(C)]
struct BtfLoadAttr {
    btf: u64,
    log_buf: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
    log_true_size: u32,
}

/// Loads type information (`BPF_BTF_LOAD`).
///
/// # Errors
///
/// The kernel's error, with its BTF log where it wrote one.
pub fn btf_load(btf: &[u8]) -> Result<OwnedFd, Rejected> {
    let load = |log: &mut [u8]| {
        let mut attr = BtfLoadAttr {
            btf: address(btf),
            log_buf: address_mut(log),
            size: length(btf.len())?,
            log_size: length(log.len())?,
            log_level: u32::from(!log.is_empty()),
            log_true_size: 0,
        };
        // SAFETY: the layout is the kernel's; `btf` and `log` have the lengths given and outlive
        // the call.
        unsafe { bpf_fd(Cmd::BtfLoad, &mut attr) }
    };
    super::prog::with_log(super::prog::LogPart::Whole, load)
}

#[repr(C)]
#[derive(Default)]
struct RawBtfInfo {
    btf: u64,
    btf_size: u32,
    id: u32,
    name: u64,
    name_len: u32,
    kernel_btf: u32,
}

/// What the kernel says about loaded type information.
pub fn btf_info(btf: &impl AsFd) -> io::Result<BtfInfo> {
    let mut info = RawBtfInfo::default();
    // SAFETY: laid out as `struct bpf_btf_info`, with null addresses and zero lengths.
    unsafe { obj_info(btf, &mut info) }?;
    Ok(BtfInfo { id: info.id, size: info.btf_size })
}

/// Loaded type information, as it was loaded.
pub fn btf_bytes(btf: &impl AsFd) -> io::Result<Vec<u8>> {
    let size = btf_info(btf)?.size;
    let mut bytes = vec![0; size as usize];
    let mut info =
        RawBtfInfo { btf: address_mut(&mut bytes), btf_size: size, ..RawBtfInfo::default() };
    // SAFETY: laid out as `struct bpf_btf_info`; `bytes` has the length given.
    unsafe { obj_info(btf, &mut info) }?;
    Ok(bytes)
}

#[repr(C)]
struct PathAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Pins an object (`BPF_OBJ_PIN`). `EEXIST` when the path is taken, `EPERM` when the directory is
/// not on bpffs.
pub fn obj_pin(object: &impl AsFd, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = PathAttr { path: path.as_ptr() as u64, fd: raw(object), flags: 0 };
    // SAFETY: the layout is the kernel's; `path` is terminated and outlives the call.
    unsafe { bpf(Cmd::ObjPin, &mut attr) }.map(drop)
}

/// Opens a pinned object (`BPF_OBJ_GET`).
pub fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = PathAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the layout is the kernel's; `path` is terminated and outlives the call.
    unsafe { bpf_fd(Cmd::ObjGet, &mut attr) }
}

/// What kind of object a descriptor is; `None` for what is none of these, and where `/proc` does not
/// say.
pub fn kind_of(object: &impl AsFd) -> Option<Kind> {
    let path = format!("/proc/thread-self/fd/{}", object.as_fd().as_raw_fd());
    let target = super::timed(|| std::fs::read_link(path)).ok()?;
    // The names of the kernel's anonymous inodes; links have an underscore since Linux 5.7, and a
    // hyphen nowhere.
    match target.to_str()?.strip_prefix("anon_inode:")? {
        "bpf-prog" => Some(Kind::Prog),
        "bpf-map" => Some(Kind::Map),
        "bpf_link" | "bpf-link" => Some(Kind::Link),
        "btf" => Some(Kind::Btf),
        _ => None,
    }
}

#[repr(C)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Opens an object by its id. `ENOENT` when it is gone.
pub fn fd_by_id(kind: Kind, id: u32) -> io::Result<OwnedFd> {
    let cmd = match kind {
        Kind::Prog => Cmd::ProgGetFdById,
        Kind::Map => Cmd::MapGetFdById,
        Kind::Btf => Cmd::BtfGetFdById,
        Kind::Link => Cmd::LinkGetFdById,
    };
    // SAFETY: the layout is the kernel's and holds no address.
    unsafe { bpf_fd(cmd, &mut IdAttr { id, next_id: 0, open_flags: 0 }) }
}

/// The lowest id above `id`; `None` after the last.
pub fn next_id(kind: Kind, id: u32) -> io::Result<Option<u32>> {
    let cmd = match kind {
        Kind::Prog => Cmd::ProgGetNextId,
        Kind::Map => Cmd::MapGetNextId,
        Kind::Btf => Cmd::BtfGetNextId,
        Kind::Link => Cmd::LinkGetNextId,
    };
    let mut attr = IdAttr { id, next_id: 0, open_flags: 0 };
    // SAFETY: the layout is the kernel's and holds no address.
    match unsafe { bpf(cmd, &mut attr) } {
        Ok(_) => Ok(Some(attr.next_id)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}
