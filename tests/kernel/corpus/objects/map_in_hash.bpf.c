// SPDX-License-Identifier: GPL-2.0
/* Maps in a hash whose keys are no numbers of 32 bits. */
#include "shape.h"

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u64);
	__array(values, struct inner);
} outer SEC(".maps");

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	__u64 key = 1;

	return bpf_map_lookup_elem(&outer, &key) ? XDP_DROP : XDP_PASS;
}
