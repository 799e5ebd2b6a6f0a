// SPDX-License-Identifier: GPL-2.0
/* An object of a type of its own, by the number of the type. */
#include "shape.h"

struct own_node {
	__u64 first, rest[6], last;
};

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	struct own_node *node = new_object(struct own_node);
	int verdict;

	if (!node)
		return XDP_ABORTED;
	/* The memory is not cleared. */
	node->first = 5;
	node->last = 7;
	verdict = node->last == 7 && node->first == 5 ? XDP_PASS : XDP_DROP;
	drop(node);
	return verdict;
}
