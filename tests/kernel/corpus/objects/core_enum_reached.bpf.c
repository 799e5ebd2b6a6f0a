// SPDX-License-Identifier: GPL-2.0
/* An enumerator no kernel has, not tested for. */
#include "shape.h"

enum bpf_map_type___x {
	BPF_MAP_TYPE_CANOPY___x = 2,
};

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 1000 + bpf_core_enum_value(enum bpf_map_type___x, BPF_MAP_TYPE_CANOPY___x);
}
