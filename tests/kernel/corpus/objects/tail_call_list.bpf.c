// SPDX-License-Identifier: GPL-2.0
/* A list that the program jumped to uses too. */
#include "shape.h"
#include "lists.h"

struct node_data {
	__u64 key;
	struct bpf_list_node link;
};

private(A) struct bpf_spin_lock lock;
private(A) struct bpf_list_head head __holds(node_data, link);

int tail(struct xdp_md *ctx);
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, 4);
	__array(values, int(struct xdp_md *));
} programs SEC(".maps") = {.values = {[0] = &tail}};

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	struct node_data *node = new_object(struct node_data);

	if (!node)
		return XDP_ABORTED;
	bpf_spin_lock(&lock);
	bpf_list_push_front_impl(&head, &node->link, NULL, 0);
	bpf_spin_unlock(&lock);
	bpf_tail_call(ctx, &programs, 0);
	return XDP_DROP;
}

SEC("xdp")
int tail(struct xdp_md *ctx)
{
	struct bpf_list_node *popped;

	bpf_spin_lock(&lock);
	popped = bpf_list_pop_front(&head);
	bpf_spin_unlock(&lock);
	if (!popped)
		return XDP_DROP;
	drop(holder_of(popped, struct node_data, link));
	return XDP_PASS;
}
