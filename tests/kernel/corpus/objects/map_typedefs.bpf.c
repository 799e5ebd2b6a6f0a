// SPDX-License-Identifier: GPL-2.0
/* A map whose attributes are behind typedefs and qualifiers. */
#include "shape.h"

typedef __u64 number;
typedef const volatile number qualified;
typedef struct definition {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	const __uint(max_entries, 1);
	__type(key, __u32);
	__type(value, qualified);
} definition;
definition values SEC(".maps");

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	__u32 zero = 0;
	__u64 *value = bpf_map_lookup_elem(&values, &zero);

	return value && !*value ? XDP_PASS : XDP_DROP;
}
