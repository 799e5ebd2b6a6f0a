// SPDX-License-Identifier: GPL-2.0
/* Maps in a map, with locks in their values. */
#include "shape.h"

struct locked {
	struct bpf_spin_lock lock;
	__u64 value;
};
struct inner {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, struct locked);
} one SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct inner);
} outer SEC(".maps") = {.values = {[0] = &one}};

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	struct locked *locked, empty = {};
	__u32 zero = 0;
	void *map = bpf_map_lookup_elem(&outer, &zero);
	__u64 value;

	if (!map)
		return XDP_ABORTED;
	bpf_map_update_elem(map, &zero, &empty, BPF_NOEXIST);
	locked = bpf_map_lookup_elem(map, &zero);
	if (!locked)
		return XDP_ABORTED;
	bpf_spin_lock(&locked->lock);
	value = ++locked->value;
	bpf_spin_unlock(&locked->lock);
	return value ? XDP_PASS : XDP_DROP;
}
