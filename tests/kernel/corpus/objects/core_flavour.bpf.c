// SPDX-License-Identifier: GPL-2.0
/* A type under a name with a flavour, and one whose flavour fits nothing. */
#include "shape.h"

struct list_head___old {
	struct list_head___old *prev;
} __kernel_type;
struct list_head___none {
	int canopy_no_such_field;
} __kernel_type;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	if (bpf_core_field_exists(struct list_head___none, canopy_no_such_field))
		return XDP_DROP;
	return 1000 + bpf_core_field_offset(struct list_head___old, prev);
}
