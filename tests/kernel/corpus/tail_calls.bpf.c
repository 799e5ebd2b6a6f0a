// SPDX-License-Identifier: GPL-2.0
/* Tail calls through arrays the object fills itself. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

__u64 first_ran;
__u64 second_ran;

int first(struct xdp_md *ctx);
int second(struct xdp_md *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 4);
	__uint(key_size, sizeof(__u32));
	__array(values, int(struct xdp_md *));
} inner_jumps SEC(".maps") = {
	.values = {[1] = (void *)&second},
};

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 4);
	__uint(key_size, sizeof(__u32));
	__array(values, int(struct xdp_md *));
} jumps SEC(".maps") = {
	.values = {[2] = (void *)&first},
};

SEC("xdp/first")
int first(struct xdp_md *ctx)
{
	first_ran++;
	bpf_tail_call(ctx, &inner_jumps, 1);
	return XDP_ABORTED;
}

SEC("xdp/second")
int second(struct xdp_md *ctx)
{
	second_ran++;
	return XDP_PASS;
}

SEC("xdp")
int tail_calls(struct xdp_md *ctx)
{
	bpf_tail_call(ctx, &jumps, 2);
	return XDP_ABORTED;
}

char _license[] SEC("license") = "GPL";
