// SPDX-License-Identifier: GPL-2.0
/* The first of two objects that are linked. */
#include "shape.h"

extern int second(int value);

struct own_first {
	__u64 values[3];
};

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 1000 + second(bpf_core_type_id_local(struct own_first) > 0);
}
