// SPDX-License-Identifier: GPL-2.0
/* A tree in a map's values. */
#include "shape.h"
#include "lists.h"

struct tree_data {
	__u64 key;
	struct bpf_rb_node link;
};
struct holder {
	__u64 before;
	struct bpf_rb_root root __holds(tree_data, link);
	struct bpf_spin_lock lock;
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct holder);
} holders SEC(".maps");

static bool less(struct bpf_rb_node *a, const struct bpf_rb_node *b)
{
	return holder_of(a, struct tree_data, link)->key <
	       holder_of(b, struct tree_data, link)->key;
}

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	__u32 one = 1;
	struct holder *holder = bpf_map_lookup_elem(&holders, &one);
	struct tree_data *node;

	if (!holder)
		return XDP_ABORTED;
	node = new_object(struct tree_data);
	if (!node)
		return XDP_ABORTED;
	node->key = 1;
	bpf_spin_lock(&holder->lock);
	bpf_rbtree_add_impl(&holder->root, &node->link, less, NULL, 0);
	bpf_spin_unlock(&holder->lock);
	return XDP_PASS;
}
