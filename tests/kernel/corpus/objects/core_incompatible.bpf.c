// SPDX-License-Identifier: GPL-2.0
/* A field that the kernel has as something else: a struct, not a number. */
#include "shape.h"

struct sk_buff {
	struct {
		int value;
	} len;
} __kernel_type;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 1000 + bpf_core_field_exists(struct sk_buff, len) +
	       bpf_core_field_exists(((struct sk_buff *)0)->len.value) * 2;
}
