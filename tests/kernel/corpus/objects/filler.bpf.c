// SPDX-License-Identifier: GPL-2.0
/* What stands before and behind a shape: a lot of types, some of them with the names of others'. */
#include "shape.h"

struct node_data {
	__u64 filler[30];
};
struct own_node {
	__u64 filler[1000];
};
struct tree_data {
	__u32 filler[3];
};
struct counted {
	__u8 filler;
};
struct filling {
	struct node_data node;
	struct own_node own;
	struct tree_data tree;
	struct counted counted;
};
struct filling filled;
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct filling);
} fillings SEC(".maps");
const volatile __u32 goes_on = 1;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	__u32 one = 1;
	struct filling *filling = bpf_map_lookup_elem(&fillings, &one);

	if (!filling || filling->node.filler[29] || filled.own.filler[999])
		return XDP_DROP;
	return goes_on ? XDP_PASS : XDP_DROP;
}
