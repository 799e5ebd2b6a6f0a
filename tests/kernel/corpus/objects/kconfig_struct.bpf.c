// SPDX-License-Identifier: GPL-2.0
/* An option as a struct. */
#include "shape.h"

struct option {
	int value;
};
extern struct option CONFIG_HZ __kconfig __weak;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 1000 + CONFIG_HZ.value;
}
