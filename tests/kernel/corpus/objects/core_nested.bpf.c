// SPDX-License-Identifier: GPL-2.0
/* Fields of fields, of arrays, and of what has no name. */
#include "shape.h"

struct qspinlock {
	union {
		struct {
			unsigned char locked;
			unsigned char pending;
		};
	};
} __kernel_type;
struct rtnl_link_stats64 {
	__u64 rx_packets;
} __kernel_type;
struct sk_buff {
	char cb[48];
} __kernel_type;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 1000 + bpf_core_field_exists(struct qspinlock, pending) * 8 +
	       bpf_core_field_offset(struct qspinlock, pending) +
	       bpf_core_field_offset(struct sk_buff, cb[7]) * 3;
}
