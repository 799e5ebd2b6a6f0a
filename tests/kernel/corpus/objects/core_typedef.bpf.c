// SPDX-License-Identifier: GPL-2.0
/* Types by typedef: one of a function, of an integer, of a struct. */
#include "shape.h"

typedef unsigned short umode_t;
typedef struct {
	int counter;
} atomic_t;
typedef long long canopy_no_such_t;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 1000 + bpf_core_type_size(umode_t) + bpf_core_type_size(atomic_t) * 10 +
	       bpf_core_type_exists(canopy_no_such_t) * 100;
}
