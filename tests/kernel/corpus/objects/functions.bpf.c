// SPDX-License-Identifier: GPL-2.0
/* Static, global, weak functions, and one that is called back. */
#include "shape.h"

static __noinline int static_one(int value)
{
	return value + 1;
}

__weak int weak_one(int value)
{
	return value + 2;
}

__noinline int global_one(int value)
{
	return static_one(value) + weak_one(value);
}

static long each(__u32 index, __u64 *sum)
{
	*sum += global_one(index & 7);
	return 0;
}

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	__u64 sum = 0;

	bpf_loop(5, each, &sum, 0);
	return 1000 + sum;
}
