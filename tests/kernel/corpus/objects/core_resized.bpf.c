// SPDX-License-Identifier: GPL-2.0
/* A pointer and an unsigned integer that the kernel has in another size. */
#include "shape.h"

struct net_device {
	__u64 mtu;
	unsigned short flags;
} __kernel_type;
extern void *bpf_rdonly_cast(const void *object, __u32 type) __ksym;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	struct net_device *device =
		bpf_rdonly_cast(ctx, bpf_core_type_id_kernel(struct net_device));

	return device->mtu == 0x123456789 || device->flags == 0x1234 ? XDP_DROP : XDP_PASS;
}
