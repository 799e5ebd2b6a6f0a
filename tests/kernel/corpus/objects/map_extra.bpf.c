// SPDX-License-Identifier: GPL-2.0
/* A map's extra word. */
#include "shape.h"

struct {
	__uint(type, BPF_MAP_TYPE_BLOOM_FILTER);
	__uint(max_entries, 100);
	__type(value, __u32);
	__uint(map_extra, 3);
} filter SEC(".maps");

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	__u32 value = 7;

	bpf_map_push_elem(&filter, &value, BPF_ANY);
	return bpf_map_peek_elem(&filter, &value) ? XDP_DROP : XDP_PASS;
}
