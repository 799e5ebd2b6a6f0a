// SPDX-License-Identifier: GPL-2.0
/* A pointer to an object of the program's own, kept by a global variable. */
#include "shape.h"

struct own_kept {
	__u64 value;
};

private(A) struct own_kept __kernel_pointer *kept;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	struct own_kept *node;
	int verdict;

	node = new_object(struct own_kept);
	if (!node)
		return XDP_ABORTED;
	node->value = 9;
	node = bpf_kptr_xchg(&kept, node);
	if (node)
		drop(node);
	node = bpf_kptr_xchg(&kept, NULL);
	if (!node)
		return XDP_DROP;
	verdict = node->value == 9 ? XDP_PASS : XDP_DROP;
	drop(node);
	return verdict;
}
