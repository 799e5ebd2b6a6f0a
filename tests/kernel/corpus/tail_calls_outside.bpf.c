// SPDX-License-Identifier: GPL-2.0
/* Tail calls through arrays that the object does not fill: its own, and one for all of an
 * interface. */
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

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} shared_jumps SEC(".maps");

SEC("xdp")
int tail_calls_shared(struct xdp_md *ctx)
{
	bpf_tail_call(ctx, &shared_jumps, 0);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
