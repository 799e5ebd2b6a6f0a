// SPDX-License-Identifier: GPL-2.0
/* The variables that are no options. */
#include "shape.h"

extern unsigned int LINUX_KERNEL_VERSION __kconfig;
extern int LINUX_HAS_BPF_COOKIE __kconfig;
extern int LINUX_CANOPY_NO_SUCH_VARIABLE __kconfig __weak;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return LINUX_KERNEL_VERSION + LINUX_HAS_BPF_COOKIE + LINUX_CANOPY_NO_SUCH_VARIABLE * 100;
}
