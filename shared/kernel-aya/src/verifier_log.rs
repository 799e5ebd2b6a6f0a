//! Reading the verifier's log: what it complains about, where in the source, what to do about it.

use crate::{eligibility, sys::Rejected};

/// Lines of the log's end that travel with an error.
const TAIL: usize = 60;

/// What the verifier said, in short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    /// One line: the complaint, and the source line it is about.
    pub(crate) reason: String,
    /// What to do.
    pub(crate) remedy: &'static str,
    /// The end of the log.
    pub(crate) log: Option<String>,
}

/// What is told where no cause is certain.
const NO_HINT: &str = "see the end of the verifier's log";

/// Complaints that the kernel makes only of programs loaded without `CAP_PERFMON` (`allow_ptr_leaks` in
/// `kernel/bpf/verifier.c`).
const NEED_PERFMON: &[&str] = &[
    "prohibited for !root",
    " pointer -= pointer prohibited",
    " pointer comparison prohibited",
    " leaks addr ",
    " partial copy of pointer",
    "attempt to corrupt spilled pointer on stack",
];

/// What helps, where the verifier's words leave one cause only: `None` for every other complaint. `block`
/// are the lines of the complaint, `instruction` the one it stopped at.
fn hint(block: &[&str], instruction: Option<&str>) -> Option<&'static str> {
    let says = |part: &str| block.iter().any(|line| line.contains(part));
    // "…, off=-2 size=1": of an access that was measured.
    let offset = |of: &str| -> Option<i64> {
        let line = block.iter().find(|line| line.contains(of))?;
        let (_, tail) = line.split_once("off=")?;
        let end = tail.find(|c: char| c != '-' && !c.is_ascii_digit()).unwrap_or(tail.len());
        tail.get(..end)?.parse().ok()
    };
    let is_null_test_missing = || {
        says("Possibly NULL pointer passed")
            || block.iter().any(|line| {
                line.ends_with("_or_null'") && line.contains(" invalid mem access '")
                    || line.contains("_or_null expected=")
            })
    };
    if NEED_PERFMON.iter().any(|complaint| says(complaint)) {
        Some("run the loader with CAP_PERFMON as well, or as root")
    } else if says("unknown#195896080") {
        // The number that libbpf and its like put in place of a relocation without an answer.
        Some("guard the access with bpf_core_field_exists() and the like: this kernel lacks it")
    } else if says("invalid func unknown#") {
        Some("this kernel has no helper of that number: use a newer one, or an object without it")
    } else if says("from non-GPL compatible program") {
        Some("declare a GPL-compatible licence in the object if that is so, or avoid the function")
    } else if says("metadata kfuncs require device-bound program") {
        Some(eligibility::DEVICE_BOUND_HINT)
    } else if says("calling kernel function ") && says(" is not allowed") {
        Some("this kernel offers the function to programs of other types only: do without it")
    } else if says("pointer arithmetic on pkt_end prohibited") {
        Some("compare a packet pointer with data_end, and leave data_end as it is")
    } else if offset("invalid access to packet, off=").is_some_and(|offset| offset >= 0) {
        Some("compare the access with data_end before it")
    } else if says("invalid access to map value, value_size=") {
        Some("stay within the map's value: check the offset or index before the access")
    } else if says("unbounded memory access, make sure to bounds check") {
        Some("bound the offset with a comparison or a mask before the access")
    } else if is_null_test_missing() {
        Some("test the pointer for NULL before using it")
    } else if says("R0 !read_ok") && instruction.is_some_and(|line| line.contains(": (95) exit")) {
        Some("return a verdict on every path")
    } else if says("infinite loop detected at insn") {
        Some("give the loop an end that the verifier can see, or use bpf_loop()")
    } else if says("BPF program is too large. Processed ") {
        Some("give its loops smaller bounds, or use bpf_loop() and global (non-static) functions")
    } else if says(" jumps is too complex") {
        Some("simplify: fewer branches, bpf_loop(), global (non-static) functions")
    } else if says("combined stack size of ")
        || offset("invalid write to stack R10 off=").is_some_and(|offset| offset < -STACK)
    {
        Some("move large local variables to a per-CPU map")
    } else if says("Unreleased reference id=") {
        Some("release what was acquired on every path")
    } else if says("unreachable insn ") {
        Some("remove the code that cannot be reached")
    } else {
        None
    }
}

/// `MAX_BPF_STACK`, bytes.
const STACK: i64 = 512;

/// What a refused load was about.
pub(crate) fn read(rejected: &Rejected) -> Complaint {
    let lines: Vec<&str> = rejected.log.trim_end().lines().collect();
    let is_complaint = |line: &&str| !is_statistics(line) && !is_state(line);
    let Some(at) = lines.iter().rposition(is_complaint) else {
        return Complaint {
            reason: format!("the kernel refuses it: {}", rejected.error),
            remedy: remedy_of(rejected.error.raw_os_error(), capabilities()),
            log: None,
        };
    };
    let before = |end: usize| lines.get(..end).unwrap_or_default();
    // A complaint may have several lines, down from the instruction or source line it is about.
    let first = before(at + 1).iter().rposition(|line| is_walk(line)).map_or(0, |walk| walk + 1);
    let complaint = lines.get(at).copied().unwrap_or_default().trim();
    let block: Vec<&str> = lines
        .get(first.min(at)..=at)
        .unwrap_or_default()
        .iter()
        .filter(|line| is_complaint(line))
        .map(|line| line.trim())
        .collect();
    let source = before(at).iter().rev().find_map(|line| line.strip_prefix("; "));
    let source = source.map(location).filter(|source| !source.is_empty());
    let reason = match source {
        Some(source) => format!("the verifier rejects it: {complaint} ({source})"),
        None => format!("the verifier rejects it: {complaint}"),
    };
    let instruction = before(at).iter().rev().find(|line| is_instruction(line)).copied();
    let remedy = hint(&block, instruction).unwrap_or(NO_HINT);
    let tail = lines.get(lines.len().saturating_sub(TAIL)..).unwrap_or_default();
    Complaint { reason, remedy, log: Some(tail.join("\n")) }
}

fn is_statistics(line: &str) -> bool {
    let line = line.trim();
    line.is_empty()
        || line.starts_with("processed ")
        || line.starts_with("verification time ")
        || line.starts_with("stack depth ")
        || line.starts_with("mark_precise")
}

/// Registers as the verifier prints them with some complaints and after each branch.
fn is_state(line: &str) -> bool {
    let line = line.trim();
    line.starts_with("cur state:")
        || line.starts_with("old state:")
        || line.starts_with("frame")
        || line.ends_with(" R10=fp0")
        || line.contains(" R10=fp0 ")
}

/// `12: (95) exit`
fn is_instruction(line: &str) -> bool {
    line.split_once(": (").is_some_and(|(number, _)| number.bytes().all(|b| b.is_ascii_digit()))
}

/// A line of the way to the complaint: an instruction, source, the start of a function.
fn is_walk(line: &str) -> bool {
    is_instruction(line) || line.starts_with(';') || line.starts_with("Validating ")
}

/// What helps against a refusal without a log, where that is certain. `capabilities` are this process's;
/// `None` where they are not known.
fn remedy_of(error: Option<i32>, capabilities: Option<u64>) -> &'static str {
    const CAP_NET_ADMIN: u64 = 1 << 12;
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    const CAP_BPF: u64 = 1 << 39;
    // For loading a program the kernel takes CAP_SYS_ADMIN for either (`bpf_prog_load`).
    let lacks =
        |capability| capabilities.is_some_and(|have| have & (capability | CAP_SYS_ADMIN) == 0);
    match error {
        Some(libc::EPERM | libc::EACCES) if lacks(CAP_BPF) || lacks(CAP_NET_ADMIN) => {
            "run with CAP_BPF and CAP_NET_ADMIN, or as root"
        }
        Some(libc::ENOMEM) => "free memory, or raise the limit of this process's memory",
        _ => "the kernel gave no reason; its log (dmesg) may",
    }
}

/// The effective capabilities of this process.
pub(crate) fn capabilities() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(effective.trim(), 16).ok()
}

/// `text @ file.c:12` (6.10 and later) as `file.c:12: text`; plain text as it is.
fn location(source: &str) -> String {
    match source.rsplit_once(" @ ") {
        Some((text, place)) => {
            let file = place.rsplit('/').next().unwrap_or(place);
            format!("{file}: {}", text.trim())
        }
        None => source.trim().to_owned(),
    }
}

/// The stack of each function in order, from the statistics (`stack depth 48+0+16`); empty when the
/// kernel does not say.
pub(crate) fn stack_depths(log: &str) -> Vec<u32> {
    log.lines()
        .find_map(|line| line.strip_prefix("stack depth "))
        .and_then(|depths| depths.trim().split('+').map(|depth| depth.parse().ok()).collect())
        .unwrap_or_default()
}

/// The last instruction at which the verifier was that calls a helper of this number:
/// `7: (85) call unknown#195896080` is instruction 7.
pub(crate) fn instruction_of(log: &str, helper: i32) -> Option<usize> {
    let call = format!(" call unknown#{helper}");
    let line = log.lines().rev().find(|line| line.contains(": (85)") && line.contains(&call))?;
    line.trim_start().split_once(':')?.0.parse().ok()
}

/// The member whose entry function the verifier was at when it stopped: `p3_…` gives 3.
pub(crate) fn member_at_fault(log: &str) -> Option<usize> {
    let function = log.lines().rev().find_map(|line| line.strip_prefix("Validating "))?;
    function.strip_prefix('p')?.split_once('_')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    fn rejected(log: &str) -> Rejected {
        Rejected { error: io::Error::from_raw_os_error(libc::EACCES), log: log.to_owned() }
    }

    #[test]
    fn the_complaint_its_place_and_a_remedy() {
        let complaint = read(&rejected(
            "0: R1=ctx() R10=fp0\n\
             ; return *(int *)data; @ bad.bpf.c:12\n\
             2: (61) r0 = *(u32 *)(r2 +0)\n\
             invalid access to packet, off=0 size=4, R2(id=0,off=0,r=0)\n\
             R2 offset is outside of the packet\n\
             processed 3 insns (limit 1000000) max_states_per_insn 0\n",
        ));
        assert_eq!(
            complaint.reason,
            "the verifier rejects it: R2 offset is outside of the packet \
             (bad.bpf.c:12: return *(int *)data;)"
        );
        assert!(complaint.log.is_some_and(|log| log.contains("invalid access to packet")));
    }

    #[test]
    fn the_member_the_verifier_was_at() {
        let at = |log| member_at_fault(log);
        assert_eq!(at("Validating p0_a() func#1...\nValidating p12_b() func#4...\n0: x"), Some(12));
        assert_eq!(at("Validating p0_a() func#1...\nValidating pop_it() func#4..."), None);
        assert_eq!(at("0: (95) exit"), None);
    }

    #[test]
    fn the_instruction_of_an_unresolved_relocation() {
        let log = "0: R1=ctx() R10=fp0\n; x = a->b; @ a.c:3\n12: (85) call unknown#195896080\n\
                   invalid func unknown#195896080\n";
        assert_eq!(instruction_of(log, 195_896_080), Some(12));
        assert_eq!(instruction_of(log, 195_896_081), None);
        assert_eq!(instruction_of("call unknown#195896080", 195_896_080), None);
    }

    #[test]
    fn no_log_is_the_error_itself() {
        let complaint = read(&rejected(""));
        assert!(complaint.reason.contains("Permission denied"), "{}", complaint.reason);
        assert_eq!(complaint.log, None);
    }

    #[test]
    fn missing_capabilities_are_told_only_where_they_are_missing() {
        let all = Some(u64::MAX);
        let asks = |error, have| remedy_of(Some(error), have).contains("CAP_BPF");
        for error in [libc::EPERM, libc::EACCES] {
            assert!(asks(error, Some(0)));
            assert!(asks(error, Some(1 << 12)), "CAP_NET_ADMIN alone");
            assert!(!asks(error, Some(1 << 12 | 1 << 39)));
            assert!(!asks(error, Some(1 << 21)), "CAP_SYS_ADMIN has both");
            assert!(!asks(error, all));
            assert!(!asks(error, None));
        }
        assert!(!asks(libc::EINVAL, Some(0)));
    }

    /// Ends of logs of a 6.18 kernel, each for a program with one mistake: what the reason says, and what
    /// the hint, if the verifier's words leave one cause.
    #[test]
    fn a_hint_is_given_where_the_cause_is_certain() {
        macro_rules! log {
            ($name:literal) => {
                ($name, include_str!(concat!("../tests/verifier_logs/", $name, ".log")))
            };
        }
        for ((name, log), reason, hint) in [
            (log!("combined_stack"), "combined stack size", Some("per-CPU map")),
            (log!("context_field"), "invalid bpf_context access off=44", None),
            (log!("device_bound"), "require device-bound program", Some("an object that does")),
            (log!("endless_loop"), "infinite loop detected at insn 5", Some("end that the")),
            (log!("gpl_only"), "GPL-restricted", Some("licence")),
            (log!("helper_not_there"), "unknown#9999", Some("no helper of that number")),
            // A capability may be missing as well.
            (log!("helper_of_another_type"), "cannot use helper bpf_sock_hash_update", None),
            (log!("jumps_too_complex"), "too complex", Some("fewer branches")),
            (log!("kernel_function_of_another_type"), "is not allowed", Some("other types")),
            (log!("loop_walked_to_the_limit"), "too large", Some("smaller bounds")),
            (log!("map_value_overrun"), "outside of the allowed", Some("within the map's value")),
            (log!("no_verdict"), "R0 !read_ok", Some("verdict on every path")),
            (log!("null_not_tested"), "map_value_or_null", Some("for NULL")),
            // Before the packet, not behind its end.
            (log!("packet_before_its_start"), "outside of the packet", None),
            (log!("packet_without_check"), "outside of the packet", Some("data_end")),
            (log!("pkt_end_arithmetic"), "pkt_end prohibited", Some("leave data_end")),
            (log!("poisoned_relocation"), "195896080", Some("bpf_core_field_exists")),
            (log!("reference_kept"), "reference leak", Some("release what was acquired")),
            (log!("register_never_set"), "R9 !read_ok", None),
            // Out of date after bpf_xdp_adjust_head(), or never a pointer.
            (log!("scalar_as_pointer"), "invalid mem access 'scalar'", None),
            (log!("stack_exceeded"), "invalid write to stack", Some("per-CPU map")),
            (log!("unbounded_index"), "unbounded memory access", Some("comparison or a mask")),
            (log!("uninitialised_stack"), "R2 type=scalar expected=fp", None),
            (log!("unreachable"), "unreachable insn 12", Some("cannot be reached")),
        ] {
            let complaint = read(&rejected(log));
            assert!(complaint.reason.contains(reason), "{name}: {}", complaint.reason);
            match hint {
                Some(hint) => assert!(complaint.remedy.contains(hint), "{name}: {complaint:?}"),
                None => assert_eq!(complaint.remedy, NO_HINT, "{name}"),
            }
            assert!(complaint.log.is_some_and(|log| log.contains("processed ")), "{name}");
        }
    }

    /// States that come with a complaint speak of pointers that have nothing to do with it.
    #[test]
    fn registers_beside_a_complaint_do_not_make_the_hint() {
        let complaint = read(&rejected(
            "9: (05) goto pc-1\n\
             infinite loop detected at insn 9\n\
             cur state: R0=map_value_or_null(id=1,map=m,ks=4,vs=8) R10=fp0 fp-8=stack\n\
             old state: R0=map_value_or_null(id=1,map=m,ks=4,vs=8) R10=fp0 fp-8=stack\n\
             processed 40 insns (limit 1000000) max_states_per_insn 1\n",
        ));
        assert!(complaint.reason.contains("infinite loop"), "{}", complaint.reason);
        assert!(complaint.remedy.contains("bpf_loop"), "{}", complaint.remedy);
    }

    #[test]
    fn what_only_cap_perfmon_allows_is_told() {
        for complaint in [
            "R3 pointer arithmetic prohibited for !root",
            "R2 pointer -= pointer prohibited",
            "R1 pointer comparison prohibited",
            "R0 leaks addr as return value",
            "R2 leaks addr into map",
            "R1 partial copy of pointer",
            "attempt to corrupt spilled pointer on stack",
        ] {
            let log =
                format!("12: (1f) r2 -= r1\n{complaint}\nprocessed 13 insns (limit 1000000)\n");
            let read = read(&rejected(&log));
            assert!(read.remedy.contains("CAP_PERFMON"), "{complaint}: {}", read.remedy);
        }
        let read = read(&rejected(
            "3: (0f) r1 += r2\nR1 pointer += pointer prohibited\nprocessed 4 insns\n",
        ));
        assert_eq!(read.remedy, NO_HINT, "no capability allows that");
    }

    #[test]
    fn stack_depths_are_read_from_the_statistics() {
        assert_eq!(stack_depths("verification time 9 usec\nstack depth 48+0+16\n"), [48, 0, 16]);
        assert!(stack_depths("processed 3 insns").is_empty());
    }
}
