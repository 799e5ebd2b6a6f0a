// SPDX-License-Identifier: GPL-2.0
/* Programs that change the packet for those after them. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int push(struct xdp_md *ctx)
{
	__u8 *data;

	if (bpf_xdp_adjust_head(ctx, -4))
		return XDP_ABORTED;
	data = (void *)(long)ctx->data;
	if ((void *)(data + 4) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	data[0] = 0xca;
	data[1] = 0x11;
	data[2] = data[3] = 0;
	return XDP_PASS;
}

SEC("xdp")
int pop(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;

	if ((void *)(data + 4) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	if (data[0] != 0xca || data[1] != 0x11)
		return XDP_DROP;
	return bpf_xdp_adjust_head(ctx, 4) ? XDP_ABORTED : XDP_PASS;
}

SEC("xdp")
int cut_tail(struct xdp_md *ctx)
{
	return bpf_xdp_adjust_tail(ctx, -10) ? XDP_ABORTED : XDP_PASS;
}

SEC("tc")
int tag(struct __sk_buff *skb)
{
	return bpf_skb_vlan_push(skb, 0x81 /* ETH_P_8021Q, big endian */, 42) ? TC_ACT_SHOT
									      : TC_ACT_OK;
}

SEC("tc")
int want_tag(struct __sk_buff *skb)
{
	return skb->vlan_present && (skb->vlan_tci & 0xfff) == 42 ? TC_ACT_OK : TC_ACT_SHOT;
}

char _license[] SEC("license") = "GPL";
