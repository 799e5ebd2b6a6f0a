// SPDX-License-Identifier: GPL-2.0
/* SEC("xdp.frags"): a program for multi-buffer packets, which it measures. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

__u64 length;

SEC("xdp.frags")
int measure(struct xdp_md *ctx)
{
	length = bpf_xdp_get_buff_len(ctx);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
