// SPDX-License-Identifier: GPL-2.0
/* A map that programs cannot write, and one without memory beforehand. */
#include "shape.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_RDONLY_PROG | BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} values SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, 8);
	__uint(value_size, 4);
} prefixes SEC(".maps");

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	struct {
		__u32 length, address;
	} key = {32, 1};
	__u32 zero = 0;
	__u64 *value = bpf_map_lookup_elem(&values, &zero);

	return value && !bpf_map_lookup_elem(&prefixes, &key) ? XDP_PASS : XDP_DROP;
}
