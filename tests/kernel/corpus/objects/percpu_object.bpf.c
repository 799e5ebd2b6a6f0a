// SPDX-License-Identifier: GPL-2.0
/* An object of a type of its own on each CPU, kept by a global variable. */
#include "shape.h"

struct own_counter {
	__u64 value;
};

private(A) struct own_counter __percpu_pointer *kept;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	struct own_counter *counter;

	counter = bpf_percpu_obj_new_impl(bpf_core_type_id_local(struct own_counter), NULL);
	if (!counter)
		return XDP_ABORTED;
	counter = bpf_kptr_xchg(&kept, counter);
	if (counter)
		bpf_percpu_obj_drop_impl(counter, NULL);
	return XDP_PASS;
}
