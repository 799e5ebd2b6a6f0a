//! Reading the verifier's log: what it complains about, where in the source, what to do about it.

use crate::sys::Rejected;

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

/// Complaints by a part of their text, and what helps.
const REMEDIES: [(&str, &str); 22] = [
    ("prohibited for !root", "run the loader with CAP_PERFMON as well, or as root"),
    ("unknown#195896080", "guard the field with bpf_core_field_exists: this kernel lacks it"),
    ("GPL", "declare a GPL-compatible licence in the object if that is so, or avoid the helper"),
    ("invalid access to packet", "compare the access with data_end before it"),
    ("outside of the packet", "compare the access with data_end before it"),
    ("bpf_context access", "check the program's type in the manifest: the hook has other fields"),
    ("pointer arithmetic on pkt_end", "compare a packet pointer with data_end, not the reverse"),
    ("_or_null", "test the pointer for NULL before using it"),
    ("invalid mem access 'scalar'", "the value is no pointer here: test it, or load it again"),
    ("invalid mem access", "test the pointer, and stay within what it points to"),
    ("!read_ok", "set the register on every path: return a verdict everywhere"),
    ("too complex", "simplify: fewer branches, bpf_loop, global (non-static) functions"),
    ("too large", "simplify: fewer branches, bpf_loop, global (non-static) functions"),
    ("back-edge", "give the loop a bound the compiler can see, or use bpf_loop"),
    ("infinite loop", "give the loop a bound the compiler can see, or use bpf_loop"),
    ("stack", "move large local variables to a per-CPU map"),
    ("invalid access to map value", "stay within the map's value: check the index"),
    ("unbounded memory access", "bound the offset with a comparison or a mask"),
    ("cannot use helper", "the helper is not for programs of this hook"),
    ("unknown func", "the helper is not for programs of this hook, or this kernel lacks it"),
    ("Unreleased reference", "release what was acquired on every path"),
    ("unreachable insn", "remove the code that cannot be reached"),
];

/// What a refused load was about.
pub(crate) fn read(rejected: &Rejected) -> Complaint {
    let lines: Vec<&str> = rejected.log.trim_end().lines().collect();
    let said = lines.iter().rposition(|line| !is_statistics(line));
    let Some((complaint, at)) = said.and_then(|at| Some(((*lines.get(at)?).trim(), at))) else {
        return Complaint {
            reason: format!("the kernel refuses it: {}", rejected.error),
            remedy: remedy_of(rejected.error.raw_os_error()),
            log: None,
        };
    };
    let source = lines.iter().take(at).rev().find_map(|line| line.strip_prefix("; "));
    let reason = match source {
        Some(source) => format!("the verifier rejects it: {complaint} ({})", location(source)),
        None => format!("the verifier rejects it: {complaint}"),
    };
    let remedy = REMEDIES
        .iter()
        .find(|(part, _)| complaint.contains(part))
        .map_or("correct the program; the verifier's log says where", |(_, remedy)| *remedy);
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

fn remedy_of(error: Option<i32>) -> &'static str {
    match error {
        Some(libc::EPERM | libc::EACCES) => "run with CAP_BPF and CAP_NET_ADMIN, or as root",
        Some(libc::ENOMEM) => "free memory, or make the maps smaller",
        Some(libc::E2BIG) => "make the program smaller",
        _ => "the kernel gave no reason; see its log (dmesg)",
    }
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
        assert!(complaint.remedy.contains("CAP_BPF"));
    }

    #[test]
    fn stack_depths_are_read_from_the_statistics() {
        assert_eq!(stack_depths("verification time 9 usec\nstack depth 48+0+16\n"), [48, 0, 16]);
        assert!(stack_depths("processed 3 insns").is_empty());
    }
}
