// SPDX-License-Identifier: GPL-2.0
/* Variables and functions that are weak, and are there. */
#include "shape.h"

__weak __u32 weak_number = 6;
__weak const volatile __u32 weak_constant = 7;

__weak int weak_function(int value)
{
	return value + weak_number;
}

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 1000 + weak_function(weak_constant);
}
