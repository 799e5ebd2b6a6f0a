// SPDX-License-Identifier: GPL-2.0
/* Functions of the kernel, one of which no kernel has. */
#include "shape.h"

extern int bpf_dynptr_from_xdp(struct xdp_md *ctx, __u64 flags, struct bpf_dynptr *dynptr) __ksym;
extern __u32 bpf_dynptr_size(const struct bpf_dynptr *dynptr) __ksym __weak;
extern int canopy_no_such_function(void) __ksym __weak;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	struct bpf_dynptr packet;

	if (canopy_no_such_function)
		return canopy_no_such_function();
	if (bpf_dynptr_from_xdp(ctx, 0, &packet) || !bpf_dynptr_size)
		return XDP_ABORTED;
	return 1000 + bpf_dynptr_size(&packet);
}
