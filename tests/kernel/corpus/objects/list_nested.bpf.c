// SPDX-License-Identifier: GPL-2.0
/* A list of objects that have lists, in two sections. */
#include "shape.h"
#include "lists.h"

struct leaf {
	struct bpf_list_node link;
	__u32 value;
};
struct branch {
	struct bpf_spin_lock lock;
	struct bpf_list_head leaves __holds(leaf, link);
	struct bpf_list_node link;
};

private(A) struct bpf_spin_lock lock;
private(A) struct bpf_list_head branches __holds(branch, link);
private(B) __u64 before;
private(B) struct bpf_spin_lock leaf_lock;
private(B) struct bpf_list_head leaves __holds(leaf, link);

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	struct branch *branch = new_object(struct branch);
	struct leaf *leaf = new_object(struct leaf);
	struct bpf_list_node *popped;

	before++;
	if (!branch || !leaf) {
		if (branch)
			drop(branch);
		if (leaf)
			drop(leaf);
		return XDP_ABORTED;
	}
	bpf_spin_lock(&leaf_lock);
	bpf_list_push_front_impl(&leaves, &leaf->link, NULL, 0);
	popped = bpf_list_pop_front(&leaves);
	bpf_spin_unlock(&leaf_lock);
	if (popped)
		drop(holder_of(popped, struct leaf, link));
	bpf_spin_lock(&lock);
	bpf_list_push_front_impl(&branches, &branch->link, NULL, 0);
	bpf_spin_unlock(&lock);
	return popped ? XDP_PASS : XDP_DROP;
}
