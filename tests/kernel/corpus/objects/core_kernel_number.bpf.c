// SPDX-License-Identifier: GPL-2.0
/* The number of a type of the kernel. */
#include "shape.h"

struct sk_buff {
	int len;
} __kernel_type;
struct canopy_no_such_type {
	int len;
};

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	if (bpf_core_type_id_kernel(struct canopy_no_such_type))
		return XDP_DROP;
	return 1000 + bpf_core_type_id_kernel(struct sk_buff);
}
