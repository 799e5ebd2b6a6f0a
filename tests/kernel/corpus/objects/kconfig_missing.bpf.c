// SPDX-License-Identifier: GPL-2.0
/* An option that is not there, asked for. */
#include "shape.h"

extern int CONFIG_CANOPY_NO_SUCH_OPTION __kconfig;
SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 1000 + CONFIG_CANOPY_NO_SUCH_OPTION;
}
