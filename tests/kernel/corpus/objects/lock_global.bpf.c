// SPDX-License-Identifier: GPL-2.0
/* A lock in a global variable. */
#include "shape.h"

private(A) struct bpf_spin_lock lock;
private(A) int counter;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	int value;

	bpf_spin_lock(&lock);
	value = ++counter;
	bpf_spin_unlock(&lock);
	return value > 0 ? XDP_PASS : XDP_DROP;
}
