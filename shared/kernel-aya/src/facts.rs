//! What this kernel and machine can do: tried, not looked up by version.
//!
//! What needs an interface is tried in a throw-away network namespace, what needs a file in our own
//! bpffs directory; nothing stays behind.

mod netns;
mod tracing_probe;

use crate::{pins::Pins, settle, sys};
use canopy_api::wire::Fact;
use nix::{
    sys::{
        resource::{Resource, getrlimit},
        utsname::uname,
    },
    unistd::Pid,
};
use std::{fs, io, path::Path, sync::OnceLock};

const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_RINGBUF: u32 = 27;

/// `r0 = 2; exit`: `XDP_PASS`.
const RETURN_2: [u8; 16] = [0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];

/// Kernel release, as in `uname -r`.
pub(crate) fn release() -> String {
    uname()
        .map_or_else(|_| "unknown".to_owned(), |name| name.release().to_string_lossy().into_owned())
}

/// The number that the kernel gave this start of the machine; empty where `/proc` does not say.
pub(crate) fn boot_id() -> String {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    let read = || fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    BOOT_ID.get_or_init(|| read().trim().to_owned()).clone()
}

/// Whether what is probed is needed for what Canopy does today.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Required,
    Optional,
}

/// What a probe saw; an error says what was missing.
type Seen = Result<String, String>;

fn fact(name: &str, need: Need, seen: Seen, remedy: &str) -> Fact {
    let (ok, detail) = match seen {
        Ok(detail) => (true, detail),
        Err(detail) => (false, detail),
    };
    Fact {
        name: name.to_owned(),
        ok,
        required: need == Need::Required,
        detail,
        remedy: (!ok).then(|| remedy.to_owned()),
    }
}

/// Everything, in the order in which a reader would look for the cause of a failure.
pub(crate) fn facts(pins: &Pins) -> Vec<Fact> {
    use Need::{Optional, Required};
    let network = netns::probe();
    let tracing = tracing_probe::Targets::new();
    // Without TCX it is the only way to attach TC chains.
    let clsact = if network.tcx.is_ok() { Optional } else { Required };
    vec![
        fact("kernel", Required, Ok(kernel()), ""),
        fact(
            "capabilities",
            Required,
            capabilities(),
            "run as root, or grant cap_bpf, cap_net_admin and cap_perfmon",
        ),
        fact(
            "bpffs",
            Required,
            bpffs(pins),
            "mount one that root can write to: mount -t bpf bpf /sys/fs/bpf",
        ),
        fact(
            "memlock",
            Required,
            memlock(),
            "give the loader's control group more memory; before Linux 5.11, raise the limit: \
             LimitMEMLOCK=infinity in the unit",
        ),
        fact("btf", Required, btf(), "a kernel with CONFIG_DEBUG_INFO_BTF=y"),
        fact("jit", Optional, jit(), "sysctl net.core.bpf_jit_enable=1"),
        fact(
            "xdp-native",
            Optional,
            network.xdp_native,
            "generic XDP is used instead, more slowly; drivers differ",
        ),
        fact("xdp-generic", Required, network.xdp_generic, "Linux 5.9 or newer (XDP links)"),
        fact("tcx", Optional, network.tcx, "Linux 6.6 or newer; clsact is used instead"),
        fact(
            "clsact",
            clsact,
            network.clsact,
            "a kernel with CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF",
        ),
        fact(
            "netns",
            Optional,
            crate::netns::probe(),
            "only for documents that say `netns`: grant cap_sys_admin (deploy/systemd/netns.conf)",
        ),
        fact("ring-buffer", Optional, ring_buffer(), "Linux 5.8 or newer"),
        fact(
            "grace-period",
            Optional,
            grace_period(),
            "counters of a replaced chain are read 0.2 s later instead",
        ),
        fact(
            "fentry",
            Optional,
            tracing.fentry(),
            "a kernel with CONFIG_DEBUG_INFO_BTF=y and trampolines (ftrace direct calls)",
        ),
        fact("freplace", Optional, tracing.freplace(), "not needed: chains are composed"),
        fact(
            "lsm",
            Optional,
            tracing.lsm(),
            "CONFIG_BPF_LSM=y, and `bpf` in the kernel's lsm= parameter",
        ),
        fact("kprobe", Optional, tracing_probe::kprobe(), "CONFIG_KPROBE_EVENTS=y"),
        fact(
            "clock",
            Optional,
            clock(),
            "synchronise the clock (chrony, systemd-timesyncd): deadlines and expiry depend on it",
        ),
    ]
}

fn kernel() -> String {
    let machine = uname().map(|name| name.machine().to_string_lossy().into_owned());
    format!("{} {}", release(), machine.unwrap_or_default())
}

/// A kernel error, in words.
fn refused(what: &str, error: &io::Error) -> String {
    format!("{what}: {error}")
}

/// Capabilities that the loader needs and this process lacks.
///
/// # Errors
/// When the kernel does not say which it has.
pub fn missing_capabilities() -> Result<Vec<&'static str>, String> {
    // linux/capability.h
    const SYS_ADMIN: u32 = 21;
    let status = fs::read_to_string("/proc/self/status")
        .map_err(|error| refused("read /proc/self/status", &error))?;
    let effective = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .ok_or_else(|| "/proc/self/status has no CapEff".to_owned())?;
    let has = |capability: u32| effective & (1 << capability) != 0;
    // cap_sys_admin stands for cap_bpf and cap_perfmon (capability.h, bpf_capable()).
    Ok(NEEDED
        .iter()
        .filter(|(number, name)| !has(*number) && (*name == "cap_net_admin" || !has(SYS_ADMIN)))
        .map(|(_, name)| *name)
        .collect())
}

/// Capabilities without which nothing is loaded and attached, by number (linux/capability.h).
const NEEDED: [(u32, &str); 3] = [(39, "cap_bpf"), (12, "cap_net_admin"), (38, "cap_perfmon")];

fn capabilities() -> Seen {
    let missing = missing_capabilities()?;
    if missing.is_empty() {
        Ok("cap_bpf, cap_net_admin, cap_perfmon".to_owned())
    } else {
        Err(format!("missing {}", missing.join(", ")))
    }
}

fn array(max_entries: u32, value_size: u32) -> io::Result<std::os::fd::OwnedFd> {
    sys::map_create(&sys::MapCreate {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size,
        max_entries,
        name: "canopy_probe",
        ..sys::MapCreate::default()
    })
}

fn bpffs(pins: &Pins) -> Seen {
    pins.claim().map_err(|error| error.to_string())?;
    // '@' is in no interface's escaped name, so nobody takes this for a chain.
    let path = pins.root().join(format!("@probe-{}", Pid::this()));
    let map = array(1, 4).map_err(|error| refused("create a map", &error))?;
    let _ = fs::remove_file(&path);
    let pinned = sys::obj_pin(&map, &path).and_then(|()| sys::obj_get(&path).map(drop));
    let _ = fs::remove_file(&path);
    match pinned {
        Ok(()) => Ok(format!("{} can be pinned to", pins.root().display())),
        Err(error) => Err(refused(&format!("pin in {}", pins.root().display()), &error)),
    }
}

fn memlock() -> Seen {
    let (soft, _) =
        getrlimit(Resource::RLIMIT_MEMLOCK).map_err(|error| format!("getrlimit: {error}"))?;
    let limit = if soft == libc::RLIM_INFINITY {
        "unlimited".to_owned()
    } else {
        format!("{} KiB", soft / 1024)
    };
    // Kernels before 5.11 charge maps to this limit, later ones to the control group.
    match array(1024, 64 << 10) {
        Ok(_) => Ok(format!("a map of 64 MiB can be made (limit {limit})")),
        Err(error) => Err(refused(&format!("make a map of 64 MiB (limit {limit})"), &error)),
    }
}

/// Types for a function `int canopy_probe(struct xdp_md *ctx)`: `(bytes, id of the FUNC)`.
fn probe_btf() -> (Vec<u8>, u32) {
    let strings = b"\0int\0xdp_md\0ctx\0canopy_probe\0";
    let (int, xdp_md, ctx, name) = (1, 5, 12, 16);
    // struct btf_type: name, info (kind << 24 | vlen), size or type; then what the kind adds.
    let types: [u32; 20] = [
        // 1: int
        int,
        1 << 24,
        4,
        (1 << 24) | 32, // signed, 32 bits
        // 2: struct xdp_md, which the verifier knows by name
        xdp_md,
        4 << 24,
        24,
        // 3: a pointer to it
        0,
        2 << 24,
        2,
        // 4: int (struct xdp_md *ctx)
        0,
        (13 << 24) | 1,
        1,
        ctx,
        3,
        // 5: the function, global
        name,
        (12 << 24) | 1,
        4,
        0,
        0,
    ];
    let types: Vec<u8> = types.iter().take(18).flat_map(|word| word.to_ne_bytes()).collect();
    let mut btf = Vec::new();
    let lengths = [types.len(), strings.len()].map(|len| u32::try_from(len).unwrap_or(0));
    let [type_len, string_len] = lengths;
    // struct btf_header
    btf.extend(0xeb9f_u16.to_ne_bytes());
    btf.extend([1, 0]);
    for word in [24, 0, type_len, type_len, string_len] {
        btf.extend(word.to_ne_bytes());
    }
    btf.extend(types);
    btf.extend(strings);
    (btf, 5)
}

fn btf() -> Seen {
    let path = "/sys/kernel/btf/vmlinux";
    let size = fs::metadata(path).map_err(|error| refused(path, &error))?.len();
    sys::btf_load(&probe_btf().0).map_err(|error| format!("load BTF: {error}"))?;
    Ok(format!("{path}, {} KiB", size / 1024))
}

fn jit() -> Seen {
    let prog = pass().map_err(|error| refused("load a program", &error))?;
    match sys::prog_info(&prog) {
        Ok(info) if info.jited_bytes > 0 => Ok("programs run as native code".to_owned()),
        Ok(_) => Err("programs are interpreted".to_owned()),
        Err(error) => Err(refused("read a program's information", &error)),
    }
}

/// An XDP program that passes everything.
fn pass() -> io::Result<std::os::fd::OwnedFd> {
    sys::prog_load(&sys::ProgLoad::new(BPF_PROG_TYPE_XDP, &RETURN_2, "GPL", "canopy_probe"))
        .map_err(|rejected| rejected.error)
}

fn ring_buffer() -> Seen {
    sys::map_create(&sys::MapCreate {
        map_type: BPF_MAP_TYPE_RINGBUF,
        max_entries: 64 << 10,
        name: "canopy_probe",
        ..sys::MapCreate::default()
    })
    .map(|_| "a ring buffer can be made".to_owned())
    .map_err(|error| refused("create a ring buffer", &error))
}

fn grace_period() -> Seen {
    settle::membarrier()
        .map(|()| "membarrier waits for one".to_owned())
        .map_err(|error| refused("membarrier", &error))
}

fn clock() -> Seen {
    let path = Path::new("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let source = fs::read_to_string(path).unwrap_or_default();
    let source = format!("clock source {}", source.trim());
    // SAFETY: all-zero is a valid `timex`; with `modes` 0 adjtimex only fills it.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `timex` is a live exclusive reference.
    match unsafe { libc::adjtimex(&raw mut timex) } {
        -1 => Err(refused("adjtimex", &io::Error::last_os_error())),
        libc::TIME_ERROR => Err(format!("not synchronised, says the kernel ({source})")),
        _ => Ok(format!("synchronised, error at most {} ms ({source})", timex.maxerror / 1000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_fact_has_a_remedy() {
        let missing = fact("x", Need::Required, Err("no".to_owned()), "get it");
        assert!(!missing.ok && missing.required);
        assert_eq!(missing.remedy.as_deref(), Some("get it"));
        assert_eq!(fact("x", Need::Optional, Ok("yes".to_owned()), "get it").remedy, None);
    }
}
