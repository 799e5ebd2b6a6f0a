// SPDX-License-Identifier: GPL-2.0
/* Enumerators and numbers of 64 bits. */
#include "shape.h"

enum wide {
	WIDE = 0x123456789abcULL,
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, enum wide);
} values SEC(".maps");

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	__u32 zero = 0;
	enum wide *value = bpf_map_lookup_elem(&values, &zero);

	if (!value)
		return XDP_ABORTED;
	*value = WIDE;
	return 1000 + ((__u64)*value >> 32);
}
