// SPDX-License-Identifier: GPL-2.0
/* An address no kernel has. */
#include "shape.h"

extern const void canopy_no_such_symbol __ksym;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 1000 + ((__u64)&canopy_no_such_symbol & 1);
}
