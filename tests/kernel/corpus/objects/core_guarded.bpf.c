// SPDX-License-Identifier: GPL-2.0
/* A field no kernel has, behind a test for it. */
#include "shape.h"

struct net_device {
	int canopy_no_such_field;
	int ifindex;
} __kernel_type;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	if (bpf_core_field_exists(struct net_device, canopy_no_such_field))
		return bpf_core_field_offset(struct net_device, canopy_no_such_field);
	return 1000 + bpf_core_field_offset(struct net_device, ifindex);
}
