// SPDX-License-Identifier: GPL-2.0
/* Data in several sections, static and of functions. */
#include "shape.h"

const volatile __u32 constant = 3;
__u32 initial = 5;
__u32 zero;
static volatile __u32 hidden = 7;
__u32 own SEC(".data.own") = 11;
const volatile __u32 own_constant SEC(".rodata.own") = 13;
__u64 own_zero SEC(".bss.own");

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	static volatile __u32 inside = 17;

	own_zero++;
	inside++;
	return 1000 + constant + initial + zero + hidden + own + own_constant + own_zero + inside;
}
