// SPDX-License-Identifier: GPL-2.0
/* Every kind of data section, string literals included. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

const volatile __u32 limit = 3;
const __u8 table[4] = {1, 2, 3, 4};
__u32 start = 40;
__u64 counted;
__u64 SEC(".data.own") own = 7;
static volatile __u64 hidden;

SEC("xdp")
int data_sections(struct xdp_md *ctx)
{
	const char text[] = "canopy";
	char copy[sizeof(text)];

	__builtin_memcpy(copy, text, sizeof(text));
	hidden ^= copy[ctx->rx_queue_index & 3];
	own += table[ctx->rx_queue_index & 3];
	counted = start + limit + own;
	start++;
	return counted > limit ? XDP_PASS : XDP_DROP;
}

char _license[] SEC("license") = "GPL";
