//! What needs a trampoline, an LSM or a probe: attached to something that never runs, and let go.

use super::{RETURN_2, Seen};
use crate::sys::{self, Kind, ProgLoad};
use canopy_chain::btf::{Btf, kind};
use std::{
    fs, io,
    os::fd::{AsFd, FromRawFd as _, OwnedFd, RawFd},
};

const BPF_PROG_TYPE_TRACING: u32 = 26;
const BPF_PROG_TYPE_EXT: u32 = 28;
const BPF_PROG_TYPE_LSM: u32 = 29;
const BPF_TRACE_FENTRY: u32 = 24;
const BPF_LSM_MAC: u32 = 27;

/// `r0 = 0; exit`.
const RETURN_0: [u8; 16] = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];

/// A kernel function that only the kernel's own test run calls (`net/bpf/test_run.c`).
const FENTRY_TARGET: &str = "bpf_fentry_test1";
/// A rarely used hook.
const LSM_TARGET: &str = "bpf_lsm_quotactl";

/// The functions to try on, by their ids in the kernel's BTF.
pub(super) struct Targets {
    fentry: Option<u32>,
    lsm: Option<u32>,
}

impl Targets {
    /// Looks them up: the kernel's BTF is parsed once here.
    pub(super) fn new() -> Self {
        let bytes = fs::read("/sys/kernel/btf/vmlinux").unwrap_or_default();
        let mut found = Self { fentry: None, lsm: None };
        if let Ok(btf) = Btf::parse(&bytes) {
            for (id, function) in btf.iter().filter(|(_, one)| one.kind == kind::FUNC) {
                match btf.string(function.name) {
                    FENTRY_TARGET => found.fentry = Some(id),
                    LSM_TARGET => found.lsm = Some(id),
                    _ => {}
                }
            }
        }
        found
    }

    pub(super) fn fentry(&self) -> Seen {
        let id = self.fentry.ok_or_else(|| unlisted(FENTRY_TARGET))?;
        attach(BPF_PROG_TYPE_TRACING, BPF_TRACE_FENTRY, id)
    }

    pub(super) fn lsm(&self) -> Seen {
        let id = self.lsm.ok_or_else(|| unlisted(LSM_TARGET))?;
        // Attaching works where BPF is compiled in and not chosen at boot, and nothing is called.
        let list = fs::read_to_string("/sys/kernel/security/lsm")
            .map_err(|error| format!("/sys/kernel/security/lsm: {error}"))?;
        if !list.trim().split(',').any(|name| name == "bpf") {
            return Err(format!("bpf is not among the active LSMs ({})", list.trim()));
        }
        attach(BPF_PROG_TYPE_LSM, BPF_LSM_MAC, id)
    }

    /// Replaces a program of our own.
    #[expect(clippy::unused_self, reason = "one of a row of probes")]
    pub(super) fn freplace(&self) -> Seen {
        freplace()
            .map(|()| "a program's function was replaced by another program".to_owned())
            .map_err(|error| format!("replace a program's function: {error}"))
    }
}

fn unlisted(function: &str) -> String {
    format!("the kernel's BTF does not list {function}")
}

fn attach(prog_type: u32, attach_type: u32, target: u32) -> Seen {
    let prog = sys::prog_load(&ProgLoad {
        expected_attach_type: attach_type,
        attach_to: Some((target, None)),
        ..ProgLoad::new(prog_type, &RETURN_0, "GPL", "canopy_probe")
    })
    .map_err(|rejected| format!("load: {}", rejected.error))?;
    sys::link_create_tracing(&prog, attach_type)
        .map(|_| "attached to a kernel function and let go".to_owned())
        .map_err(|error| format!("attach: {error}"))
}

fn freplace() -> io::Result<()> {
    let (bytes, function) = super::probe_btf();
    let btf = sys::btf_load(&bytes).map_err(|rejected| rejected.error)?;
    // struct bpf_func_info: instruction, type.
    let func_info = [0_u32.to_ne_bytes(), function.to_ne_bytes()].concat();
    let typed = |prog_type| ProgLoad {
        btf: Some(btf.as_fd()),
        func_info: &func_info,
        ..ProgLoad::new(prog_type, &RETURN_2, "GPL", "canopy_probe")
    };
    let target =
        sys::prog_load(&typed(super::BPF_PROG_TYPE_XDP)).map_err(|rejected| rejected.error)?;
    // The id is that of the target's own BTF, which the kernel may have renumbered; it has not, as
    // it keeps BTF as loaded. Opened again by id to be sure it is the one the program has.
    sys::fd_by_id(Kind::Btf, sys::prog_info(&target)?.btf_id)?;
    let replacement = sys::prog_load(&ProgLoad {
        attach_to: Some((function, Some(target.as_fd()))),
        ..typed(BPF_PROG_TYPE_EXT)
    })
    .map_err(|rejected| rejected.error)?;
    sys::link_create_tracing(&replacement, 0).map(drop)
}

/// Opens a kernel probe, and closes it: nothing is attached to it.
pub(super) fn kprobe() -> Seen {
    let path = "/sys/bus/event_source/devices/kprobe/type";
    let kind: u32 = fs::read_to_string(path)
        .map_err(|error| format!("{path}: {error}"))?
        .trim()
        .parse()
        .map_err(|_| format!("{path} has no number"))?;
    open_kprobe(kind)
        .map(|_| "a probe on a kernel function can be opened".to_owned())
        .map_err(|error| format!("open a probe on {FENTRY_TARGET}: {error}"))
}

fn open_kprobe(kind: u32) -> io::Result<OwnedFd> {
    /// `struct perf_event_attr` as far as `PERF_ATTR_SIZE_VER1`.
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        kind: u32,
        size: u32,
        config: u64,
        sample_period: u64,
        sample_type: u64,
        read_format: u64,
        flags: u64,
        wakeup_events: u32,
        bp_type: u32,
        kprobe_func: u64,
        probe_offset: u64,
    }
    const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
    let function = std::ffi::CString::new(FENTRY_TARGET).map_err(io::Error::other)?;
    let attr = Attr {
        kind,
        size: u32::try_from(size_of::<Attr>()).map_err(io::Error::other)?,
        kprobe_func: function.as_ptr() as u64,
        ..Attr::default()
    };
    // SAFETY: `attr` has the size it says and the kernel's layout; `function` is terminated and
    // outlives the call. The other arguments are numbers: any process, CPU 0, no group.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attr, -1, 0, -1, PERF_FLAG_FD_CLOEXEC)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
