// SPDX-License-Identifier: GPL-2.0
/* A map whose sizes are said twice. */
#include "shape.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__uint(key_size, 4);
	__type(key, __u32);
	__type(value, __u64);
	__uint(value_size, 8);
} values SEC(".maps");

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	__u64 value = 3, *found;
	__u32 key = 1;

	bpf_map_update_elem(&values, &key, &value, BPF_ANY);
	found = bpf_map_lookup_elem(&values, &key);
	return found && *found == 3 ? XDP_PASS : XDP_DROP;
}
