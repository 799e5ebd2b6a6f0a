// SPDX-License-Identifier: GPL-2.0
/* Maps in a map, with lists in their values. */
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
struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct holder);
} one SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct inner);
} outer SEC(".maps") = {.values = {[0] = &one}};

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	struct node_data *node = new_object(struct node_data);
	struct bpf_list_node *popped;
	int verdict = XDP_DROP;
	__u32 zero = 0;
	void *map = bpf_map_lookup_elem(&outer, &zero);
	struct holder *holder = map ? bpf_map_lookup_elem(map, &zero) : NULL;

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
