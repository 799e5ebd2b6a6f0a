// SPDX-License-Identifier: GPL-2.0
/* SEC("classifier/foo") and the bare SEC("classifier"): the names of older loaders. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

SEC("classifier/foo")
int foo(struct __sk_buff *skb)
{
	skb->mark = 7;
	return TC_ACT_PIPE;
}

SEC("classifier")
int bare(struct __sk_buff *skb)
{
	return skb->mark == 7 ? TC_ACT_SHOT : TC_ACT_OK;
}

char _license[] SEC("license") = "GPL";
