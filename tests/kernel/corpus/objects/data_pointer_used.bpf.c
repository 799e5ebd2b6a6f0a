// SPDX-License-Identifier: GPL-2.0
/* An address in data, which the program follows. */
#include "shape.h"

__u32 variable = 4;
__u32 *volatile pointer = &variable;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 1000 + *pointer;
}
