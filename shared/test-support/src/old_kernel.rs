//! This kernel made to look like an older one, for one thread: system calls that came later are
//! answered as a kernel would that does not know them.

#![allow(unsafe_code, reason = "seccomp is set by prctl(2)")]

use anyhow::{Context as _, Result};
use std::{io, mem::offset_of};

const BPF_PROG_QUERY: u32 = 16;
const BPF_LINK_CREATE: u32 = 28;

/// From now on the calling thread, and what it starts, gets `EINVAL` for the commands of bpf(2) that
/// TCX needs, as on Linux before 6.6.
pub fn without_tcx() -> Result<()> {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap_or(0),
        jt: 0,
        jf: 0,
        k,
    };
    let jump = |k: u32, jt: u8, jf: u8| libc::sock_filter {
        jt,
        jf,
        ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k)
    };
    let load = |at: usize| {
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, u32::try_from(at).unwrap_or(0))
    };
    let call = u32::try_from(libc::SYS_bpf).context("number of bpf(2)")?;
    // The low half of the first argument, on this machine's byte order.
    let command =
        offset_of!(libc::seccomp_data, args) + if cfg!(target_endian = "big") { 4 } else { 0 };
    let einval = u32::try_from(libc::EINVAL).context("EINVAL")?;
    let mut filter = [
        load(offset_of!(libc::seccomp_data, nr)),
        jump(call, 0, 4),
        load(command),
        jump(BPF_PROG_QUERY, 1, 0),
        jump(BPF_LINK_CREATE, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | einval),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).context("length of the filter")?,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: takes numbers only.
    let promised = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: the kernel copies the filter, which lives until the end of this function.
    let set =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if promised != 0 || set != 0 {
        return Err(io::Error::last_os_error()).context("set a seccomp filter");
    }
    Ok(())
}
