// SPDX-License-Identifier: GPL-2.0
/* Options that are numbers, of several widths. */
#include "shape.h"

extern int CONFIG_HZ __kconfig;
extern unsigned short CONFIG_NR_CPUS __kconfig __weak;
extern __u64 CONFIG_PHYSICAL_START __kconfig __weak;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 1000 + CONFIG_HZ + CONFIG_NR_CPUS + (CONFIG_PHYSICAL_START >> 8);
}
