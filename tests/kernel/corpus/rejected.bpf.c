// SPDX-License-Identifier: GPL-2.0
/* The verifier rejects it: a packet access without a comparison. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int rejected(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;

	return data[3] == 1 ? XDP_PASS : XDP_DROP;
}

char _license[] SEC("license") = "GPL";
