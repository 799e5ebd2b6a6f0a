// SPDX-License-Identifier: GPL-2.0
/* A variable that is neither an option nor known. */
#include "shape.h"

extern int CANOPY_NO_OPTION __kconfig __weak;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 1000 + CANOPY_NO_OPTION;
}
