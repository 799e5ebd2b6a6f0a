// SPDX-License-Identifier: GPL-2.0
/* A program array that the object fills. */
#include "shape.h"

int tail(struct xdp_md *ctx);
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 4);
	__uint(key_size, 4);
	__array(values, int(struct xdp_md *));
} programs SEC(".maps") = {.values = {[2] = &tail}};

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	bpf_tail_call(ctx, &programs, 2);
	return XDP_DROP;
}

SEC("xdp")
int tail(struct xdp_md *ctx)
{
	return XDP_PASS;
}
