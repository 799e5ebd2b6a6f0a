// SPDX-License-Identifier: GPL-2.0
/* Maps in the form of before BTF, with a pinning word that is 0. */
#include "shape.h"

struct old_definition {
	unsigned int type, key_size, value_size, max_entries, flags, id, pinning;
};
struct old_definition values SEC("maps") = {BPF_MAP_TYPE_ARRAY, 4, 8, 1};

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	__u32 zero = 0;
	__u64 *value = bpf_map_lookup_elem(&values, &zero);

	return value && !*value ? XDP_PASS : XDP_DROP;
}
