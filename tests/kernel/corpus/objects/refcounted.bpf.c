// SPDX-License-Identifier: GPL-2.0
/* An object that is counted, and held twice. */
#include "shape.h"
#include "lists.h"

struct counted {
	struct bpf_refcount count;
	struct bpf_list_node link;
	__u64 key;
};

private(A) struct bpf_spin_lock lock;
private(A) struct bpf_list_head head __holds(counted, link);

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	struct counted *node = new_object(struct counted), *other;
	struct bpf_list_node *popped;

	if (!node)
		return XDP_ABORTED;
	other = bpf_refcount_acquire_impl(node, NULL);
	bpf_spin_lock(&lock);
	bpf_list_push_front_impl(&head, &node->link, NULL, 0);
	popped = bpf_list_pop_front(&head);
	bpf_spin_unlock(&lock);
	drop(other);
	if (!popped)
		return XDP_ABORTED;
	drop(holder_of(popped, struct counted, link));
	return XDP_PASS;
}
