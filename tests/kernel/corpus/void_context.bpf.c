// SPDX-License-Identifier: GPL-2.0
/* Prototypes nobody would write today: an untyped context, an unusual return type. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int untyped(void *context)
{
	struct xdp_md *ctx = context;

	return (long)ctx->data_end - (long)ctx->data > 20 ? XDP_PASS : XDP_DROP;
}

SEC("xdp")
unsigned long wide(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
