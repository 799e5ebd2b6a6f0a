// SPDX-License-Identifier: GPL-2.0
/*
 * CO-RE: fields at places only the running kernel knows, sizes, existence, enumerators. The local
 * declarations are wrong on purpose in everything but the names.
 */
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

struct sk_buff {
	/* not where it is in any kernel */
	unsigned int len;
} __attribute__((preserve_access_index));

struct net_device___fields {
	int no_such_field;
	unsigned int mtu;
} __attribute__((preserve_access_index));

enum bpf_map_type___core {
	BPF_MAP_TYPE_LPM_TRIE___core = 1000,
};

void *bpf_cast_to_kern_ctx(void *) __ksym;

__u32 kernel_length;
__u32 plain_length;
__u32 mtu_exists;
__u32 other_exists = 1;
__u32 mtu_offset;
__u32 lpm_trie;

SEC("some/core")
int core(struct __sk_buff *ctx)
{
	struct sk_buff *skb = bpf_cast_to_kern_ctx(ctx);

	kernel_length = skb->len;
	plain_length = ctx->len;
	mtu_exists = bpf_core_field_exists(struct net_device___fields, mtu);
	other_exists = bpf_core_field_exists(struct net_device___fields, no_such_field);
	mtu_offset = bpf_core_field_offset(struct net_device___fields, mtu);
	lpm_trie = bpf_core_enum_value(enum bpf_map_type___core, BPF_MAP_TYPE_LPM_TRIE___core);
	return 0;
}

char _license[] SEC("license") = "GPL";
