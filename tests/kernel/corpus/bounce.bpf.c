// SPDX-License-Identifier: GPL-2.0-only
/* Sends every packet where it may be lost: back where it came from, or to loopback. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int bounce(struct xdp_md *ctx)
{
	return XDP_TX;
}

/* Loopback takes no frames from XDP. */
SEC("xdp")
int to_loopback(struct xdp_md *ctx)
{
	return bpf_redirect(1, 0);
}

char _license[] SEC("license") = "GPL";
