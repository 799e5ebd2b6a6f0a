// SPDX-License-Identifier: GPL-2.0
/* An option that is yes, as a number. */
#include "shape.h"

extern int CONFIG_BPF_SYSCALL __kconfig __weak;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 1000 + CONFIG_BPF_SYSCALL;
}
