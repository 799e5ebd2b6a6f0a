// SPDX-License-Identifier: GPL-2.0
/* An array of maps and a hash of maps, filled in the object. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
};

struct inner first SEC(".maps");
struct inner second SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, struct inner);
} by_index SEC(".maps") = {
	.values = {[1] = &first, [3] = &second},
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, struct inner);
} by_hash SEC(".maps");

SEC("xdp")
int nested(struct xdp_md *ctx)
{
	__u32 zero = 0, index = 3;
	void *map = bpf_map_lookup_elem(&by_index, &index);
	__u64 *value;

	if (bpf_map_lookup_elem(&by_hash, &zero))
		return XDP_ABORTED;
	if (!map)
		return XDP_ABORTED;
	value = bpf_map_lookup_elem(map, &zero);
	if (!value)
		return XDP_ABORTED;
	__sync_fetch_and_add(value, 1);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
