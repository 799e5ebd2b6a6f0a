//! Times of runs.

use super::{Cmd, bpf_fd};
use std::{io, os::fd::OwnedFd};

/// `union bpf_attr` of `BPF_ENABLE_STATS`.
#[repr(C)]
struct Attr {
    kind: u32,
}

/// `BPF_STATS_RUN_TIME`
const RUN_TIME: u32 = 0;

/// Has the kernel add up runs and nanoseconds of every program, until the descriptor is closed. Demands
/// `CAP_SYS_ADMIN` (`bpf_enable_stats` of `kernel/bpf/syscall.c`).
pub fn run_times() -> io::Result<OwnedFd> {
    let mut attr = Attr { kind: RUN_TIME };
    // SAFETY: `enable_stats` is one number; the command returns a descriptor.
    unsafe { bpf_fd(Cmd::EnableStats, &mut attr) }
}
