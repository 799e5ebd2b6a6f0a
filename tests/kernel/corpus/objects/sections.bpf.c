// SPDX-License-Identifier: GPL-2.0
/* Functions in sections of their own, entered at the second. */
#include "shape.h"

__attribute__((section("helpers"), noinline)) int helper_one(int value)
{
	return value * 2;
}

__attribute__((section("helpers"), noinline)) int helper_two(int value)
{
	return helper_one(value) + 1;
}

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 1000 + helper_two(20);
}
