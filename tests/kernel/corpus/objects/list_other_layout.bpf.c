// SPDX-License-Identifier: GPL-2.0
/* A list whose struct has the name, not the layout, of another object's. */
#include "shape.h"
#include "lists.h"

struct node_data {
	__u64 before[5], key;
	struct bpf_list_node link;
};

private(A) struct bpf_spin_lock lock;
private(A) struct bpf_list_head head __holds(node_data, link);

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	struct node_data *node = new_object(struct node_data);
	struct bpf_list_node *popped;
	int verdict = XDP_DROP;

	if (!node)
		return XDP_ABORTED;
	node->key = 42;
	bpf_spin_lock(&lock);
	bpf_list_push_front_impl(&head, &node->link, NULL, 0);
	popped = bpf_list_pop_front(&head);
	bpf_spin_unlock(&lock);
	if (!popped)
		return XDP_ABORTED;
	node = holder_of(popped, struct node_data, link);
	if (node->key == 42)
		verdict = XDP_PASS;
	drop(node);
	return verdict;
}
