// SPDX-License-Identifier: GPL-2.0
/* Several types of its own, in functions that are called. */
#include "shape.h"

struct own_small {
	__u32 value;
};
struct own_large {
	__u64 values[100];
};

static __noinline __u64 small(void)
{
	struct own_small *node = new_object(struct own_small);
	__u64 value;

	if (!node)
		return 0;
	node->value = 1;
	value = node->value;
	drop(node);
	return value;
}

__noinline int large(int add)
{
	struct own_large *node = new_object(struct own_large);
	int value;

	if (!node)
		return 0;
	node->values[99] = 2;
	value = node->values[99] + add;
	drop(node);
	return value;
}

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return small() + large(3) == 6 ? XDP_PASS : XDP_DROP;
}
