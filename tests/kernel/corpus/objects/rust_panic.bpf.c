// SPDX-License-Identifier: GPL-2.0
/* A call of what Rust calls when a program panics, that is not in the object. */
#include "shape.h"

extern int panic(void) __asm__("_ZN4core9panicking18panic_bounds_check17h0123456789abcdefE");

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return ctx->rx_queue_index > 63 ? panic() : XDP_PASS;
}
