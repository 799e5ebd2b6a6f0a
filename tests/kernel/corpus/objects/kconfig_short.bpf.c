// SPDX-License-Identifier: GPL-2.0
/* An option that is text, in a variable that is too short, and one by a typedef. */
#include "shape.h"

typedef unsigned int option;
extern const char CONFIG_CC_VERSION_TEXT[1] __kconfig __weak;
extern const volatile option CONFIG_HZ __kconfig;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 1000 + CONFIG_CC_VERSION_TEXT[0] + CONFIG_HZ;
}
