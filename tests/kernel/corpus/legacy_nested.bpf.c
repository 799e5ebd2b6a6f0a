// SPDX-License-Identifier: GPL-2.0
/* Maps in maps as iproute2 had them declared: by the inner map's id, and its place. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct bpf_elf_map {
	__u32 type;
	__u32 size_key;
	__u32 size_value;
	__u32 max_elem;
	__u32 flags;
	__u32 id;
	__u32 pinning;
	__u32 inner_id;
	__u32 inner_idx;
};

struct bpf_elf_map SEC("maps") inner = {
	.type = BPF_MAP_TYPE_ARRAY,
	.size_key = sizeof(__u32),
	.size_value = sizeof(__u64),
	.max_elem = 1,
	.id = 42,
	.inner_idx = 1,
};

struct bpf_elf_map SEC("maps") outer = {
	.type = BPF_MAP_TYPE_ARRAY_OF_MAPS,
	.size_key = sizeof(__u32),
	.size_value = sizeof(__u32),
	.max_elem = 2,
#ifdef OTHER_ID
	.inner_id = 43,
#else
	.inner_id = 42,
#endif
	.inner_idx = -1,
};

SEC("xdp")
int count(struct xdp_md *ctx)
{
	__u32 zero = 0, one = 1;
	void *map = bpf_map_lookup_elem(&outer, &one);
	__u64 *value = map ? bpf_map_lookup_elem(map, &zero) : 0;

	if (!value)
		return XDP_ABORTED;
	__sync_fetch_and_add(value, 1);
	return bpf_map_lookup_elem(&outer, &zero) ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";
