// SPDX-License-Identifier: GPL-2.0
/* A tree in global variables, ordered by a function of the program. */
#include "shape.h"
#include "lists.h"

struct tree_data {
	struct bpf_rb_node link;
	__u64 key;
};

private(A) struct bpf_spin_lock lock;
private(A) struct bpf_rb_root root __holds(tree_data, link);

static bool less(struct bpf_rb_node *a, const struct bpf_rb_node *b)
{
	return holder_of(a, struct tree_data, link)->key <
	       holder_of(b, struct tree_data, link)->key;
}

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	struct tree_data *node = new_object(struct tree_data);
	struct bpf_rb_node *first;
	int verdict = XDP_DROP;

	if (!node)
		return XDP_ABORTED;
	node->key = 42;
	bpf_spin_lock(&lock);
	bpf_rbtree_add_impl(&root, &node->link, less, NULL, 0);
	first = bpf_rbtree_first(&root);
	if (!first) {
		bpf_spin_unlock(&lock);
		return XDP_ABORTED;
	}
	first = bpf_rbtree_remove(&root, first);
	bpf_spin_unlock(&lock);
	if (!first)
		return XDP_ABORTED;
	node = holder_of(first, struct tree_data, link);
	if (node->key == 42)
		verdict = XDP_PASS;
	drop(node);
	return verdict;
}
