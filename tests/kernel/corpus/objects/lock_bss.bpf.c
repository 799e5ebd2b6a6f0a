// SPDX-License-Identifier: GPL-2.0
/* A lock in .bss beside variables with values. */
#include "shape.h"

__u64 first;
struct bpf_spin_lock lock;
__u64 last;
__u64 initial = 5;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	bpf_spin_lock(&lock);
	first++;
	last++;
	bpf_spin_unlock(&lock);
	return first == last && initial == 5 ? XDP_PASS : XDP_DROP;
}
