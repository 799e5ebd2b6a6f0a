// SPDX-License-Identifier: GPL-2.0
/* Returns the verdict the packet asks this program for: the byte at `place` of the payload. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define HEADER 14

const volatile __u32 place;
__u64 runs;

static __always_inline int ask(void *data, void *data_end)
{
	__u8 *byte = data + HEADER + (place & 63);

	__sync_fetch_and_add(&runs, 1);
	if ((void *)(byte + 1) > data_end)
		return 0;
	return *byte;
}

SEC("xdp")
int xdp_verdict_byte(struct xdp_md *ctx)
{
	return ask((void *)(long)ctx->data, (void *)(long)ctx->data_end);
}

/* TC verdicts start at -1. */
SEC("tc")
int tc_verdict_byte(struct __sk_buff *skb)
{
	return ask((void *)(long)skb->data, (void *)(long)skb->data_end) - 1;
}

char _license[] SEC("license") = "GPL";
