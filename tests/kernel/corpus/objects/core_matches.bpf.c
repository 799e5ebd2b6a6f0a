// SPDX-License-Identifier: GPL-2.0
/* Whether types of the kernel have a shape (the test makes it of "exists"). */
#include "shape.h"

struct list_head {
	struct list_head *next, *prev;
} __kernel_type;
struct list_head___other {
	int next;
} __kernel_type;
struct sk_buff___part {
	unsigned int len;
	struct net_device *dev;
} __kernel_type;
enum bpf_map_type___part {
	BPF_MAP_TYPE_HASH___part,
};

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 1000 + bpf_core_type_exists(struct list_head) +
	       bpf_core_type_exists(struct list_head___other) * 2 +
	       bpf_core_type_exists(struct sk_buff___part) * 4 +
	       bpf_core_type_exists(enum bpf_map_type___part) * 8;
}
