// SPDX-License-Identifier: GPL-2.0
/* A tail call through an array that somebody else fills. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} jumps SEC(".maps");

SEC("xdp")
int tail_calls_outside(struct xdp_md *ctx)
{
	bpf_tail_call(ctx, &jumps, 0);
	/* nothing there */
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
