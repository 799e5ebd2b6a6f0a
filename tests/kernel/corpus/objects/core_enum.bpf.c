// SPDX-License-Identifier: GPL-2.0
/* Values of enumerators, and whether they are there. */
#include "shape.h"

enum bpf_map_type___x {
	BPF_MAP_TYPE_RINGBUF___x = 1,
	BPF_MAP_TYPE_CANOPY___x = 2,
};

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	if (bpf_core_enum_value_exists(enum bpf_map_type___x, BPF_MAP_TYPE_CANOPY___x))
		return bpf_core_enum_value(enum bpf_map_type___x, BPF_MAP_TYPE_CANOPY___x);
	return 1000 + bpf_core_enum_value(enum bpf_map_type___x, BPF_MAP_TYPE_RINGBUF___x);
}
