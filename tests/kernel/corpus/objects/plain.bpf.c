// SPDX-License-Identifier: GPL-2.0
/* Nothing out of the ordinary. */
#include "shape.h"

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return XDP_PASS;
}
