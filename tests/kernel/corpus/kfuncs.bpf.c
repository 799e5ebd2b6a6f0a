// SPDX-License-Identifier: GPL-2.0
/* Kernel functions called by name, one of which no kernel has. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern int bpf_dynptr_from_xdp(struct xdp_md *ctx, __u64 flags, struct bpf_dynptr *dynptr) __ksym;
extern void *bpf_dynptr_slice(const struct bpf_dynptr *dynptr, __u32 offset, void *buffer,
			      __u32 size) __ksym;
extern __u32 bpf_dynptr_size(const struct bpf_dynptr *dynptr) __ksym __weak;
extern void canopy_no_such_function(void) __ksym __weak;

SEC("xdp")
int kfuncs(struct xdp_md *ctx)
{
	struct bpf_dynptr packet;
	__u8 buffer[2] = {}, *type;

	if (canopy_no_such_function)
		canopy_no_such_function();
	if (bpf_dynptr_from_xdp(ctx, 0, &packet))
		return XDP_ABORTED;
	if (!bpf_dynptr_size || !bpf_dynptr_size(&packet))
		return XDP_ABORTED;
	type = bpf_dynptr_slice(&packet, 12, buffer, sizeof(buffer));
	if (!type)
		return XDP_ABORTED;
	return type[0] == 0x88 ? XDP_PASS : XDP_DROP;
}

char _license[] SEC("license") = "GPL";
