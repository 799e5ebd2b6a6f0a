// SPDX-License-Identifier: GPL-2.0
/* Size and existence of types no kernel has, and of ones that all have. */
#include "shape.h"

struct canopy_no_such_type {
	int field;
} __kernel_type;
struct list_head {
	void *next;
} __kernel_type;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 1000 + bpf_core_type_size(struct canopy_no_such_type) * 100 +
	       bpf_core_type_exists(struct canopy_no_such_type) * 10 +
	       bpf_core_type_size(struct list_head) + bpf_core_type_exists(struct list_head);
}
