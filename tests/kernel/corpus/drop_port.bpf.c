// SPDX-License-Identifier: GPL-2.0
/* Drops UDP over IPv4 to one port, and nothing else. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

const volatile __u16 port;
__u64 dropped;

static __always_inline int unwanted(void *data, void *data_end)
{
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);

	if ((void *)(udp + 1) > data_end)
		return 0;
	if (eth->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5 || ip->protocol != IPPROTO_UDP)
		return 0;
	if (udp->dest != bpf_htons(port))
		return 0;
	__sync_fetch_and_add(&dropped, 1);
	return 1;
}

SEC("xdp")
int xdp_drop_port(struct xdp_md *ctx)
{
	return unwanted((void *)(long)ctx->data, (void *)(long)ctx->data_end) ? XDP_DROP : XDP_PASS;
}

SEC("tc")
int tc_drop_port(struct __sk_buff *skb)
{
	if (bpf_skb_pull_data(skb,
			      sizeof(struct ethhdr) + sizeof(struct iphdr) + sizeof(struct udphdr)))
		return TC_ACT_OK;
	return unwanted((void *)(long)skb->data, (void *)(long)skb->data_end) ? TC_ACT_SHOT
									      : TC_ACT_OK;
}

char _license[] SEC("license") = "GPL";
