// SPDX-License-Identifier: GPL-2.0
/* Programs of other types that the verifier takes as XDP: they touch no context. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define PROGRAM(section, name, context) \
	SEC(section)                    \
	int name(context *ctx)          \
	{                               \
		return 0;               \
	}

PROGRAM("tracepoint/sched/sched_switch", on_switch, void)
PROGRAM("kprobe/do_unlinkat", on_unlink, struct pt_regs)
PROGRAM("fentry/do_unlinkat", on_entry, unsigned long long)
PROGRAM("lsm/file_open", on_open, unsigned long long)
PROGRAM("cgroup/skb", on_group, struct __sk_buff)
PROGRAM("sk_skb/stream_verdict", on_stream, struct __sk_buff)
PROGRAM("socket", on_socket, struct __sk_buff)
PROGRAM("raw_tp/sys_enter", on_enter, struct bpf_raw_tracepoint_args)
PROGRAM("xdp/devmap", on_devmap, struct xdp_md)
PROGRAM("xdp.frags/cpumap", on_cpumap, struct xdp_md)
PROGRAM("tc", on_tc, struct __sk_buff)
PROGRAM("custom", by_context, struct bpf_raw_tracepoint_args)
PROGRAM("xdp", on_xdp, struct xdp_md)
PROGRAM("prog", by_manifest, void)
PROGRAM("classifier", doubtful, void)

char _license[] SEC("license") = "GPL";
