//! What hook a program is meant for, by the ELF section it lies in and the type of its context.
//!
//! The manifest decides how a program is loaded. The section and the context type are evidence of what
//! its author meant: a tracepoint program that is loaded as XDP passes the verifier where it does not
//! touch its context, and then every packet gets a verdict that was never one. Names that say nothing
//! (`prog`, `xdp_filter`, `2/7`) are left to the manifest.
//!
//! Names of sections: libbpf, `section_defs[]` (src/libbpf.c); those of older loaders: iproute2.

use crate::Hook;

/// How well a program fits the hook that a manifest declares for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SectionFit {
    /// Nothing speaks against it.
    Fits,
    /// It may be meant for the hook; worth a warning. One line.
    Doubtful(String),
    /// It cannot be meant for the hook.
    Mismatch {
        /// What contradicts the hook, in one line.
        reason: String,
        /// What to change, in one line.
        hint: String,
    },
}

/// What a section's name says of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meant {
    /// XDP, attached to an interface.
    Xdp,
    /// XDP of another attach type: run for entries of a map.
    XdpOfMap(&'static str),
    /// TC, by a name that libbpf gives that type.
    Tc,
    /// TC by custom; iproute2 took it for XDP too.
    TcByCustom,
    /// Replaces a function of another program, which may be one of the hook.
    Replacement,
    /// Another program type: its name in words.
    Other(&'static str),
    /// Nothing.
    Unknown,
}

/// Section names up to the first `/`, without a suffix such as `.s`, of program types that are for no
/// hook of a chain.
const OTHERS: &[(&str, &str)] = &[
    ("cgroup", "a cgroup program"),
    ("cgroup_skb", "a cgroup program"),
    ("fentry", "a tracing program"),
    ("fexit", "a tracing program"),
    ("flow_dissector", "a flow dissector"),
    ("fmod_ret", "a tracing program"),
    ("fsession", "a tracing program"),
    ("iter", "an iterator"),
    ("kprobe", "a kprobe"),
    ("kretprobe", "a kprobe"),
    ("kretsyscall", "a kprobe"),
    ("ksyscall", "a kprobe"),
    ("lirc_mode2", "an infrared decoder"),
    ("lsm", "an LSM program"),
    ("lsm_cgroup", "an LSM program"),
    ("lwt_in", "a lightweight tunnel program"),
    ("lwt_out", "a lightweight tunnel program"),
    ("lwt_seg6local", "a lightweight tunnel program"),
    ("lwt_xmit", "a lightweight tunnel program"),
    ("netfilter", "a netfilter program"),
    ("perf_event", "a perf event program"),
    ("raw_tp", "a raw tracepoint program"),
    ("raw_tracepoint", "a raw tracepoint program"),
    ("sk_lookup", "a socket lookup program"),
    ("sk_msg", "a socket message program"),
    ("sk_reuseport", "a socket selection program"),
    ("sk_skb", "a socket stream program"),
    ("sockops", "a socket operations program"),
    ("socket", "a socket filter"),
    ("struct_ops", "an implementation of a kernel structure"),
    ("syscall", "a program that user space runs"),
    ("tp", "a tracepoint program"),
    ("tp_btf", "a tracing program"),
    ("tracepoint", "a tracepoint program"),
    ("uprobe", "a uprobe"),
    ("uretprobe", "a uprobe"),
    ("usdt", "a uprobe"),
];

/// Context types that belong to other program types, by what their names begin with.
const OTHER_CONTEXTS: &[(&str, &str)] = &[
    ("bpf_cgroup_dev_ctx", "a cgroup program"),
    ("bpf_iter__", "an iterator"),
    ("bpf_nf_ctx", "a netfilter program"),
    ("bpf_perf_event_data", "a perf event program"),
    ("bpf_raw_tracepoint_args", "a raw tracepoint program"),
    ("bpf_sk_lookup", "a socket lookup program"),
    ("bpf_sock", "a cgroup or socket operations program"),
    ("bpf_sysctl", "a cgroup program"),
    ("pt_regs", "a kprobe or uprobe"),
    ("sk_msg_md", "a socket message program"),
    ("sk_reuseport_md", "a socket selection program"),
    ("trace_event_raw_", "a tracepoint program"),
    ("user_pt_regs", "a kprobe or uprobe"),
];

fn meant(section: &str) -> Meant {
    // A leading '?' tells libbpf not to load the program unless it is asked to.
    let section = section.strip_prefix('?').unwrap_or(section);
    match section {
        "xdp/devmap" | "xdp.frags/devmap" => return Meant::XdpOfMap("devmap"),
        "xdp/cpumap" | "xdp.frags/cpumap" => return Meant::XdpOfMap("cpumap"),
        _ => {}
    }
    let head = section.split('/').next().unwrap_or_default();
    let head = head.split('.').next().unwrap_or_default();
    match head {
        "xdp" => Meant::Xdp,
        "tc" | "tcx" | "netkit" => Meant::Tc,
        "freplace" => Meant::Replacement,
        "action" | "act" | "classifier" | "cls" => Meant::TcByCustom,
        _ => OTHERS
            .iter()
            .find(|(name, _)| *name == head)
            .map_or(Meant::Unknown, |(_, words)| Meant::Other(words)),
    }
}

/// Whether the section's name says that the program handles multi-buffer packets: `xdp.frags`.
pub fn declares_frags(section: &str) -> bool {
    let section = section.strip_prefix('?').unwrap_or(section);
    section.split('/').next() == Some("xdp.frags")
}

/// Compares a program's section, and the name of the struct that its first parameter points to where the
/// object's types say it, with the hook that a manifest declares.
pub fn section_fit(hook: Hook, section: &str, context: Option<&str>) -> SectionFit {
    let (own, other) = match hook {
        Hook::Xdp => ("xdp_md", "__sk_buff"),
        Hook::TcIngress | Hook::TcEgress => ("__sk_buff", "xdp_md"),
    };
    let wanted = if hook == Hook::Xdp { "xdp" } else { "tc-ingress or tc-egress" };
    let takes_own = context == Some(own);
    let takes_other = context == Some(other);
    let mismatch = |what: &str, hint: String| SectionFit::Mismatch {
        reason: format!(
            "its section \"{section}\" makes it {what}, and the manifest declares it for {hook}"
        ),
        hint,
    };
    let choose_another =
        || format!("name a function written for {wanted} in the manifest, or put it in no chain");
    let by_context = |what: &str, context: &str, hint: String| SectionFit::Mismatch {
        reason: format!(
            "its context is a struct {context}, which makes it {what}, and the manifest declares \
             it for {hook}"
        ),
        hint,
    };
    let (other_program, other_hook) = match hook {
        Hook::Xdp => ("a TC program", "declare hooks: [tc-ingress] or [tc-egress] in the manifest"),
        Hook::TcIngress | Hook::TcEgress => {
            ("an XDP program", "declare hooks: [xdp] in the manifest")
        }
    };

    match (hook, meant(section)) {
        (_, Meant::Other(words)) => mismatch(words, choose_another()),
        (_, Meant::Replacement) if takes_own => SectionFit::Doubtful(format!(
            "its section \"{section}\" makes it a replacement of another program's function, and its \
             context is a struct {own}"
        )),
        (_, Meant::Replacement) => {
            mismatch("a replacement of another program's function", choose_another())
        }
        (Hook::Xdp, Meant::XdpOfMap(map)) => mismatch(
            &format!("an XDP program for entries of a {map}"),
            format!(
                "name a function of a section \"xdp\" in the manifest; one for a {map} runs behind a redirect, not in a chain"
            ),
        ),
        (Hook::Xdp, Meant::Tc)
        | (Hook::TcIngress | Hook::TcEgress, Meant::Xdp | Meant::XdpOfMap(_))
            if !takes_own =>
        {
            mismatch(other_program, other_hook.to_owned())
        }
        (Hook::Xdp, Meant::Xdp) | (Hook::TcIngress | Hook::TcEgress, Meant::Tc) => {
            if takes_other {
                return SectionFit::Doubtful(format!(
                    "its section \"{section}\" is one for {wanted}, and its context a struct {other}"
                ));
            }
            direction_fit(hook, section)
        }
        _ if takes_other => by_context(other_program, other, other_hook.to_owned()),
        (_, Meant::Tc | Meant::Xdp | Meant::XdpOfMap(_)) => SectionFit::Doubtful(format!(
            "its section \"{section}\" makes it {other_program}, and its context is a struct {own}"
        )),
        (Hook::Xdp, Meant::TcByCustom) if !takes_own => SectionFit::Doubtful(format!(
            "its section \"{section}\" usually holds TC programs, and the manifest declares it for \
             {hook}"
        )),
        (_, Meant::TcByCustom | Meant::Unknown) => {
            let foreign = context.and_then(|context| {
                let known = OTHER_CONTEXTS.iter().find(|(name, _)| context.starts_with(name));
                known.map(|(_, words)| (context, *words))
            });
            match foreign {
                Some((context, words)) => by_context(words, context, choose_another()),
                None => direction_fit(hook, section),
            }
        }
    }
}

/// Compares the direction that a TC section names with the hook. The kernel knows none: a program runs
/// wherever it is attached.
fn direction_fit(hook: Hook, section: &str) -> SectionFit {
    let name = section.strip_prefix('?').unwrap_or(section);
    let meant = match name.split_once('/') {
        Some(("tc" | "tcx" | "classifier" | "cls", "ingress")) => Hook::TcIngress,
        Some(("tc" | "tcx" | "classifier" | "cls", "egress")) => Hook::TcEgress,
        _ => return SectionFit::Fits,
    };
    if hook == Hook::Xdp || meant == hook {
        return SectionFit::Fits;
    }
    SectionFit::Doubtful(format!(
        "its section \"{section}\" is one for {meant}, and the manifest declares it for {hook}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mismatch(hook: Hook, section: &str, context: Option<&str>) -> bool {
        matches!(section_fit(hook, section, context), SectionFit::Mismatch { .. })
    }

    fn fits(hook: Hook, section: &str, context: Option<&str>) -> bool {
        section_fit(hook, section, context) == SectionFit::Fits
    }

    /// Every section name that libbpf gives a program type other than XDP and TC.
    #[test]
    fn sections_of_other_program_types_fit_no_hook() {
        for section in [
            "socket",
            "sk_reuseport/migrate",
            "sk_reuseport",
            "kprobe/do_unlinkat",
            "kprobe",
            "uprobe/libc:malloc",
            "uprobe.s/libc:malloc",
            "kretprobe/x",
            "uretprobe//bin/sh:main",
            "kprobe.multi/x*",
            "kretprobe.multi/x*",
            "kprobe.session/x",
            "uprobe.multi.s/x",
            "ksyscall/open",
            "kretsyscall/open",
            "usdt/x:y:z",
            "usdt.s/x",
            "tracepoint/sched/x",
            "tp/syscalls/sys_enter_openat",
            "tp_btf/sched_switch",
            "raw_tracepoint/x",
            "raw_tp/x",
            "raw_tp.w/x",
            "fentry/x",
            "fentry.s/x",
            "fmod_ret/x",
            "fexit/x",
            "fexit.s/x",
            "lsm/file_open",
            "lsm.s/bprm_committed_creds",
            "lsm_cgroup/socket_bind",
            "iter/task",
            "iter.s/task",
            "syscall",
            "perf_event",
            "lwt_in",
            "lwt_out",
            "lwt_xmit",
            "lwt_seg6local",
            "sockops",
            "sk_skb/stream_parser",
            "sk_skb/stream_verdict",
            "sk_skb/verdict",
            "sk_skb",
            "sk_msg",
            "lirc_mode2",
            "flow_dissector",
            "cgroup_skb/ingress",
            "cgroup_skb/egress",
            "cgroup/skb",
            "cgroup/sock_create",
            "cgroup/connect4",
            "cgroup/getsockopt",
            "cgroup/dev",
            "cgroup/sysctl",
            "struct_ops/init",
            "struct_ops.s/init",
            "struct_ops",
            "sk_lookup/echo",
            "sk_lookup",
            "netfilter",
            "?tracepoint/sched/x",
        ] {
            for hook in Hook::ALL {
                // A void pointer, a context that says nothing, and one that would fit.
                for context in [None, Some("own_args"), Some("__sk_buff")] {
                    assert!(mismatch(hook, section, context), "{section} {hook} {context:?}");
                }
            }
        }
    }

    #[test]
    fn the_hooks_own_sections_fit() {
        for section in ["xdp", "xdp.frags", "xdp/first", "?xdp", "xdp.frags/x", "xdp/devmapper"] {
            for context in [None, Some("xdp_md"), Some("own")] {
                assert!(fits(Hook::Xdp, section, context), "{section}");
            }
        }
        for section in [
            "tc",
            "netkit/primary",
            "netkit/peer",
            "classifier",
            "classifier/foo",
            "action",
            "act",
            "cls",
            "?tc",
        ] {
            for hook in [Hook::TcIngress, Hook::TcEgress] {
                for context in [None, Some("__sk_buff")] {
                    assert!(fits(hook, section, context), "{section}");
                }
            }
        }
    }

    #[test]
    fn a_section_of_the_other_direction_is_remarked() {
        use Hook::{TcEgress, TcIngress};
        for section in ["tc/ingress", "tcx/ingress", "?tcx/ingress", "classifier/ingress"] {
            for context in [None, Some("__sk_buff")] {
                assert!(fits(TcIngress, section, context), "{section}");
                let SectionFit::Doubtful(said) = section_fit(TcEgress, section, context) else {
                    panic!("{section} fits");
                };
                assert!(said.contains("tc-ingress") && said.contains("tc-egress"), "{said}");
            }
        }
        for section in ["tc/egress", "tcx/egress", "classifier/egress"] {
            assert!(fits(TcEgress, section, None), "{section}");
            assert!(matches!(section_fit(TcIngress, section, None), SectionFit::Doubtful(_)));
        }
        assert!(fits(TcEgress, "tc/ingress_filter", None), "another word");
    }

    #[test]
    fn names_that_say_nothing_are_left_to_the_manifest() {
        for section in [
            "prog",
            "xdp_filter",
            "xdp_tracepoint",
            "2/7",
            "from-netdev",
            ".text",
            "filter",
            "tc_main",
            "kprobes",
            "socket1",
            "",
            "tracing",
            "xdp_devmap",
            "cgroups/x",
        ] {
            for hook in Hook::ALL {
                for context in [None, Some("own")] {
                    assert!(fits(hook, section, context), "{section} {hook}");
                }
            }
        }
    }

    #[test]
    fn programs_for_map_entries_are_not_for_an_interface() {
        for section in ["xdp/devmap", "xdp/cpumap", "xdp.frags/devmap", "xdp.frags/cpumap"] {
            assert!(mismatch(Hook::Xdp, section, Some("xdp_md")), "{section}");
            assert!(mismatch(Hook::TcIngress, section, Some("xdp_md")), "{section}");
        }
    }

    #[test]
    fn xdp_and_tc_are_told_apart_by_section_and_context() {
        for (hook, section, own, other) in [
            (Hook::Xdp, "tc", "xdp_md", "__sk_buff"),
            (Hook::Xdp, "tcx/ingress", "xdp_md", "__sk_buff"),
            (Hook::TcEgress, "xdp", "__sk_buff", "xdp_md"),
            (Hook::TcIngress, "xdp.frags", "__sk_buff", "xdp_md"),
        ] {
            assert!(mismatch(hook, section, Some(other)), "{section}");
            assert!(mismatch(hook, section, None), "{section}");
            // Both kinds of evidence against each other: a warning.
            assert!(matches!(section_fit(hook, section, Some(own)), SectionFit::Doubtful(_)));
        }
        // The section agrees with the manifest and the context does not.
        let doubtful = |hook, section, context| {
            matches!(section_fit(hook, section, Some(context)), SectionFit::Doubtful(_))
        };
        assert!(doubtful(Hook::Xdp, "xdp", "__sk_buff"));
        assert!(doubtful(Hook::TcIngress, "tc", "xdp_md"));
        assert!(doubtful(Hook::Xdp, "freplace/entry", "xdp_md"));
        assert!(mismatch(Hook::Xdp, "freplace/entry", Some("__sk_buff")));
        assert!(mismatch(Hook::TcIngress, "freplace", None));
        // iproute2's names: the context decides.
        assert!(mismatch(Hook::Xdp, "classifier", Some("__sk_buff")));
        assert!(fits(Hook::Xdp, "classifier", Some("xdp_md")));
        assert!(matches!(section_fit(Hook::Xdp, "classifier", None), SectionFit::Doubtful(_)));
        assert!(mismatch(Hook::TcIngress, "cls", Some("xdp_md")));
    }

    #[test]
    fn the_context_decides_where_the_section_says_nothing() {
        for context in [
            "bpf_raw_tracepoint_args",
            "pt_regs",
            "user_pt_regs",
            "bpf_sock_ops",
            "bpf_sock_addr",
            "bpf_sockopt",
            "bpf_sysctl",
            "sk_msg_md",
            "bpf_iter__task",
            "bpf_perf_event_data",
            "trace_event_raw_sched_switch",
            "bpf_sk_lookup",
            "sk_reuseport_md",
            "bpf_nf_ctx",
            "bpf_cgroup_dev_ctx",
        ] {
            for hook in Hook::ALL {
                assert!(mismatch(hook, "prog", Some(context)), "{context}");
            }
        }
        assert!(mismatch(Hook::Xdp, "prog", Some("__sk_buff")));
        assert!(mismatch(Hook::TcIngress, "xdp_filter", Some("xdp_md")));
        assert!(fits(Hook::Xdp, "prog", Some("xdp_md")));
    }

    #[test]
    fn a_mismatch_says_what_speaks_against_the_manifest() {
        let SectionFit::Mismatch { reason, hint } =
            section_fit(Hook::Xdp, "tracepoint/sched/sched_switch", None)
        else {
            panic!("it fits");
        };
        assert!(reason.contains("tracepoint/sched/sched_switch"), "{reason}");
        assert!(reason.contains("declares it for xdp"), "{reason}");
        assert!(hint.contains("manifest"), "{hint}");
    }

    #[test]
    fn only_xdp_frags_declares_multi_buffer_packets() {
        for section in ["xdp.frags", "?xdp.frags", "xdp.frags/one"] {
            assert!(declares_frags(section), "{section}");
        }
        for section in ["xdp", "xdp/frags", "xdp.fragsx", "tc", "xdp_frags"] {
            assert!(!declares_frags(section), "{section}");
        }
    }
}
