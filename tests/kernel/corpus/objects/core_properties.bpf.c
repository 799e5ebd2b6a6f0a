// SPDX-License-Identifier: GPL-2.0
/* Sizes, signs and shifts of fields, bit fields among them. */
#include "shape.h"

struct sk_buff {
	unsigned int len;
	unsigned char pkt_type : 3;
	unsigned char cloned : 1;
	int skb_iif;
} __kernel_type;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 100000 + bpf_core_field_size(struct sk_buff, len) +
	       __builtin_preserve_field_info(((struct sk_buff *)0)->skb_iif, BPF_FIELD_SIGNED) *
		       10 +
	       __builtin_preserve_field_info(((struct sk_buff *)0)->len, BPF_FIELD_SIGNED) * 100 +
	       __builtin_preserve_field_info(((struct sk_buff *)0)->pkt_type,
					     BPF_FIELD_RSHIFT_U64) *
		       7 +
	       __builtin_preserve_field_info(((struct sk_buff *)0)->pkt_type,
					     BPF_FIELD_LSHIFT_U64) *
		       11 +
	       __builtin_preserve_field_info(((struct sk_buff *)0)->pkt_type,
					     BPF_FIELD_BYTE_OFFSET);
}
