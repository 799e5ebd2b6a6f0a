// SPDX-License-Identifier: GPL-2.0
/* An option that does not fit its variable. */
#include "shape.h"

extern signed char CONFIG_HZ __kconfig __weak;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 1000 + CONFIG_HZ;
}
