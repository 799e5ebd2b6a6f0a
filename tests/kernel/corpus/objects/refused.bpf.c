// SPDX-License-Identifier: GPL-2.0
/* A read outside of the packet. */
#include "shape.h"

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return *(__u32 *)(long)ctx->data;
}
