// SPDX-License-Identifier: GPL-2.0
/* Addresses of the kernel, without types. */
#include "shape.h"

extern const void schedule __ksym;
extern const void canopy_no_such_symbol __ksym __weak;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	if (&canopy_no_such_symbol)
		return XDP_DROP;
	return (__u32)(__u64)&schedule ^ (__u32)((__u64)&schedule >> 32);
}
