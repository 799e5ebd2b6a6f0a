// SPDX-License-Identifier: GPL-2.0
/* A function of the kernel under a name with a flavour. */
#include "shape.h"

extern void *bpf_obj_new_impl___two(__u64 type, void *meta) __ksym __weak;
struct own {
	__u64 value;
};

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	struct own *own;

	if (!bpf_obj_new_impl___two)
		return XDP_DROP;
	own = bpf_obj_new_impl___two(bpf_core_type_id_local(struct own), NULL);
	if (own)
		drop(own);
	return XDP_PASS;
}
