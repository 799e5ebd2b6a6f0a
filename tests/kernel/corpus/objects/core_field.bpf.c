// SPDX-License-Identifier: GPL-2.0
/* Offsets of fields of kernel types. */
#include "shape.h"

struct net_device {
	unsigned int mtu;
	int ifindex;
} __kernel_type;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 1000 + bpf_core_field_offset(struct net_device, mtu) +
	       bpf_core_field_offset(struct net_device, ifindex) * 7;
}
