//! bpf(2), called directly: what aya does not offer (fused programs, compare-and-swap on links,
//! exact read-back). Safe functions over the raw commands of `linux/bpf.h`; every buffer's length
//! is checked against what the kernel will read or write before the call.
//!
//! Errors are [`io::Error`] with the kernel's own number, so that callers can tell `ENOLINK` from
//! `EPERM`.

mod link;
mod map;
mod object;
mod prog;
mod stats;

pub use link::{
    LinkInfo, LinkOrder, LinkTarget, TcxList, TcxProgram, iter_create, link_create,
    link_create_tracing, link_detach, link_info, link_update, tcx_list, tcx_query,
};
pub use map::{
    Batch, Map, MapCreate, MapInfo, MapState, arena_place, map_create, map_info, map_state, memory,
    possible_cpus,
};
pub use object::{
    BtfInfo, Kind, btf_bytes, btf_info, btf_load, fd_by_id, kind_of, next_id, obj_get, obj_pin,
};
pub use prog::{
    ProgInfo, ProgLoad, ProgRecords, Rejected, TestRun, TestRunOutput, prog_bind_map, prog_info,
    prog_load, prog_load_with_stats, prog_records, prog_test_run, prog_try_load,
};

pub use stats::run_times;

use std::{
    ffi::c_long,
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Bytes a kernel object's name may have, its terminating zero included (`BPF_OBJ_NAME_LEN`).
pub const OBJ_NAME_LEN: usize = 16;

/// The commands of `enum bpf_cmd` used here.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
enum Cmd {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapGetNextKey = 4,
    ProgLoad = 5,
    ObjPin = 6,
    ObjGet = 7,
    ProgTestRun = 10,
    ProgGetNextId = 11,
    MapGetNextId = 12,
    ProgGetFdById = 13,
    MapGetFdById = 14,
    ObjGetInfoByFd = 15,
    ProgQuery = 16,
    BtfLoad = 18,
    BtfGetFdById = 19,
    MapFreeze = 22,
    BtfGetNextId = 23,
    MapLookupBatch = 24,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkGetFdById = 30,
    LinkGetNextId = 31,
    EnableStats = 32,
    IterCreate = 33,
    LinkDetach = 34,
    ProgBindMap = 35,
}

/// Nanoseconds; see [`spent`].
static SPENT: AtomicU64 = AtomicU64::new(0);

/// Time this process has spent inside the kernel for its chains, all threads together: verifying,
/// attaching, pinning, reading, waiting for packets to leave.
pub fn spent() -> Duration {
    Duration::from_nanos(SPENT.load(Ordering::Relaxed))
}

/// Makes a call whose time counts as [`spent`]. Not within another.
pub(crate) fn timed<T>(call: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = call();
    let took = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
    SPENT.fetch_add(took, Ordering::Relaxed);
    result
}

/// The one system call.
///
/// # Safety
///
/// `A` must be `repr(C)` without padding bytes and laid out as the part of `union bpf_attr` that
/// `cmd` uses; every address in it must be valid, for as many bytes as the kernel reads or writes
/// there, until this returns.
unsafe fn bpf<A>(cmd: Cmd, attr: &mut A) -> io::Result<c_long> {
    timed(|| {
        // SAFETY: `attr` is a live exclusive reference of the size given; the rest is the caller's
        // promise.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, cmd as u32, std::ptr::from_mut(attr), size_of::<A>())
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    })
}

/// Like [`bpf`], for commands that return a new descriptor.
///
/// # Safety
///
/// As for [`bpf`], and `cmd` must be one that returns a descriptor.
unsafe fn bpf_fd<A>(cmd: Cmd, attr: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let result = unsafe { bpf(cmd, attr) }?;
    let fd = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us (close-on-exec, as every BPF
    // descriptor), and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Bytes of a page of this machine.
pub fn page_size() -> u32 {
    // SAFETY: reads a constant of the system; no memory is involved.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u32::try_from(size).unwrap_or(4096)
}

/// The address of a slice as bpf(2) takes it.
fn address<T>(slice: &[T]) -> u64 {
    if slice.is_empty() { 0 } else { slice.as_ptr() as u64 }
}

/// The address of a slice the kernel writes to.
fn address_mut<T>(slice: &mut [T]) -> u64 {
    if slice.is_empty() { 0 } else { slice.as_mut_ptr() as u64 }
}

/// A length as bpf(2) takes it.
fn length(len: usize) -> io::Result<u32> {
    u32::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))
}

/// A descriptor as bpf(2) takes it.
fn raw(fd: &impl std::os::fd::AsFd) -> u32 {
    use std::os::fd::AsRawFd as _;
    // A borrowed descriptor is never negative.
    fd.as_fd().as_raw_fd().cast_unsigned()
}

/// A name as the kernel keeps it: what it would refuse becomes '_', the end is cut.
///
/// The kernel takes letters, digits, '_' and '.' (`bpf_obj_name_cpy`).
pub fn object_name(name: &str) -> [u8; OBJ_NAME_LEN] {
    let mut out = [0; OBJ_NAME_LEN];
    for (to, from) in out.iter_mut().zip(name.bytes().take(OBJ_NAME_LEN - 1)) {
        *to =
            if from.is_ascii_alphanumeric() || from == b'_' || from == b'.' { from } else { b'_' };
    }
    out
}

/// A kernel object's name as text.
fn text(name: &[u8]) -> String {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    String::from_utf8_lossy(name.get(..end).unwrap_or_default()).into_owned()
}

/// `OBJ_GET_INFO_BY_FD` into `info`; returns the bytes the kernel filled.
///
/// # Safety
///
/// `I` must be plain integers, laid out as a prefix of the kernel's info struct for this kind of
/// descriptor; addresses in it must be valid for the lengths beside them.
unsafe fn obj_info<I>(fd: &impl std::os::fd::AsFd, info: &mut I) -> io::Result<u32> {
    #[repr(C)]
    struct Attr {
        fd: u32,
        info_len: u32,
        info: u64,
    }
    let mut attr = Attr {
        fd: raw(fd),
        info_len: length(size_of::<I>())?,
        info: std::ptr::from_mut(info) as u64,
    };
    // SAFETY: the layout is that of `struct { bpf_fd, info_len, info }`; `info` lives until the end
    // of this function and has the length given.
    unsafe { bpf(Cmd::ObjGetInfoByFd, &mut attr) }?;
    Ok(attr.info_len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_made_fit_for_the_kernel() {
        assert_eq!(&object_name("a-b.c/d"), b"a_b.c_d\0\0\0\0\0\0\0\0\0");
        assert_eq!(&object_name("a_name_longer_than_fifteen"), b"a_name_longer_t\0");
        assert_eq!(text(&object_name("short")), "short");
    }
}
