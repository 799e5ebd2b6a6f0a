// SPDX-License-Identifier: GPL-2.0
/* One helper that only GPL-compatible programs may call; the licence is LICENCE. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#ifndef LICENCE
#define LICENCE "GPL"
#endif

SEC("xdp")
int reserved(struct xdp_md *ctx)
{
	const char format[] = "canopy";

	if (ctx->data_end - ctx->data > 60000)
		bpf_trace_printk(format, sizeof(format));
	return XDP_PASS;
}

SEC("xdp")
int unreserved(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char _license[] SEC("license") = LICENCE;
