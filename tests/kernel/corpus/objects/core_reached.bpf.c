// SPDX-License-Identifier: GPL-2.0
/* A field no kernel has, not tested for. */
#include "shape.h"

struct net_device {
	int canopy_no_such_field;
} __kernel_type;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 1000 + bpf_core_field_offset(struct net_device, canopy_no_such_field);
}
