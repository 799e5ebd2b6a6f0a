// SPDX-License-Identifier: GPL-2.0
/* Maps in an array that the object fills. */
#include "shape.h"

struct inner {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} one SEC(".maps"), two SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, struct inner);
} outer SEC(".maps") = {.values = {[1] = &one, [3] = &two}};

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	__u32 key = 3, missing = 2;
	__u64 value = 1;
	void *inner = bpf_map_lookup_elem(&outer, &key);

	if (!inner || bpf_map_lookup_elem(&outer, &missing))
		return XDP_DROP;
	bpf_map_update_elem(inner, &key, &value, BPF_ANY);
	return bpf_map_lookup_elem(&two, &key) ? XDP_PASS : XDP_DROP;
}
