// SPDX-License-Identifier: GPL-2.0
/* A kernel object by the number of its type. */
#include "shape.h"

struct sk_buff {
	unsigned int len;
} __kernel_type;
extern void *bpf_rdonly_cast(const void *object, __u32 type) __ksym;
extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	struct sk_buff *object =
		bpf_rdonly_cast(bpf_cast_to_kern_ctx(ctx), bpf_core_type_id_kernel(struct sk_buff));

	/* What is there is no packet buffer; that it may be read is all that is asked. */
	return object->len == 0x12345678 ? XDP_DROP : XDP_PASS;
}
