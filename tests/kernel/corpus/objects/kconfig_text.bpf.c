// SPDX-License-Identifier: GPL-2.0
/* Options that are text, whole and cut. */
#include "shape.h"

extern const char CONFIG_DEFAULT_HOSTNAME[24] __kconfig __weak;
extern const char CONFIG_CC_VERSION_TEXT[8] __kconfig __weak;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	int sum = 1000;

	for (int i = 0; i < 24; i++)
		sum += CONFIG_DEFAULT_HOSTNAME[i];
	for (int i = 0; i < 8; i++)
		sum += CONFIG_CC_VERSION_TEXT[i] * (i + 3);
	return sum;
}
