// SPDX-License-Identifier: GPL-2.0
/* A function no kernel has. */
#include "shape.h"

extern int canopy_no_such_function(void) __ksym;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return canopy_no_such_function();
}
