// SPDX-License-Identifier: GPL-2.0
/* A pointer to an object of its own in a map's values (older compilers lose its tag). */
#include "shape.h"

struct own_kept {
	__u64 value;
};
struct own_kept *for_the_type;
struct holder {
	struct own_kept __kernel_pointer *node;
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, struct holder);
} holders SEC(".maps");

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	struct holder *holder, empty = {};
	struct own_kept *node;
	__u32 key = 3;
	int verdict;

	bpf_map_update_elem(&holders, &key, &empty, BPF_NOEXIST);
	holder = bpf_map_lookup_elem(&holders, &key);
	if (!holder)
		return XDP_ABORTED;

	node = new_object(struct own_kept);
	if (!node)
		return XDP_ABORTED;
	node->value = 9;
	node = bpf_kptr_xchg(&holder->node, node);
	if (node)
		drop(node);
	node = bpf_kptr_xchg(&holder->node, NULL);
	if (!node)
		return XDP_DROP;
	verdict = node->value == 9 ? XDP_PASS : XDP_DROP;
	drop(node);
	return verdict;
}
