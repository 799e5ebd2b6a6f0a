// SPDX-License-Identifier: GPL-2.0
/* Maps in the form of iproute2, one of them pinned for all. */
#include "shape.h"

struct bpf_elf_map {
	__u32 type, size_key, size_value, max_elem, flags, id, pinning, inner_id, inner_idx;
};
struct bpf_elf_map SEC("maps") values = {BPF_MAP_TYPE_ARRAY, 4, 8, 1, 0, 0, 2};
struct bpf_elf_map SEC("maps") others = {BPF_MAP_TYPE_HASH, 4, 8, 4};

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	__u32 zero = 0;
	__u64 *value = bpf_map_lookup_elem(&values, &zero);

	return value && !*value ? XDP_PASS : XDP_DROP;
}
