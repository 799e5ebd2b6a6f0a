// SPDX-License-Identifier: GPL-2.0
/* A list in the values of a map, with its lock. */
#include "shape.h"
#include "lists.h"

struct node_data {
	__u64 key;
	struct bpf_list_node link;
};

struct holder {
	struct bpf_spin_lock lock;
	struct bpf_list_head head __holds(node_data, link);
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, struct holder);
} holders SEC(".maps");

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	struct node_data *node = new_object(struct node_data);
	struct bpf_list_node *popped;
	int verdict = XDP_DROP;
	__u32 one = 1;
	struct holder *holder = bpf_map_lookup_elem(&holders, &one);

	if (!holder) {
		if (node)
			drop(node);
		return XDP_ABORTED;
	}
	if (!node)
		return XDP_ABORTED;
	node->key = 42;
	bpf_spin_lock(&holder->lock);
	bpf_list_push_front_impl(&holder->head, &node->link, NULL, 0);
	popped = bpf_list_pop_front(&holder->head);
	bpf_spin_unlock(&holder->lock);
	if (!popped)
		return XDP_ABORTED;
	node = holder_of(popped, struct node_data, link);
	if (node->key == 42)
		verdict = XDP_PASS;
	drop(node);
	return verdict;
}
