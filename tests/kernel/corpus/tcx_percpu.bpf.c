// SPDX-License-Identifier: GPL-2.0
/* SEC("tcx/ingress") and SEC("tcx/egress") in one object, sharing a per-CPU array. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

static __always_inline int count(__u32 key)
{
	__u64 *value = bpf_map_lookup_elem(&seen, &key);

	if (value)
		*value += 1;
	return -1; /* TCX_NEXT, which older headers lack */
}

SEC("tcx/ingress")
int on_ingress(struct __sk_buff *skb)
{
	return count(0);
}

SEC("tcx/egress")
int on_egress(struct __sk_buff *skb)
{
	return count(1);
}

char _license[] SEC("license") = "Dual BSD/GPL";
