// SPDX-License-Identifier: GPL-2.0
/* A function that nobody defines. */
#include "shape.h"

extern int nobody_defines_this(void);

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return nobody_defines_this();
}
