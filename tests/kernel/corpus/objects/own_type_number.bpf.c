// SPDX-License-Identifier: GPL-2.0
/* The number of a type of its own, only compared. */
#include "shape.h"

struct own_first {
	__u64 value;
};
struct own_second {
	__u64 value;
};

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	__u32 first = bpf_core_type_id_local(struct own_first);
	__u32 second = bpf_core_type_id_local(struct own_second);

	return first && second && first != second ? XDP_PASS : XDP_DROP;
}
