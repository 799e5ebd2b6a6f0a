// SPDX-License-Identifier: GPL-2.0
/* A lock in a static variable beside others. */
#include "shape.h"

static struct {
	__u64 before;
	struct bpf_spin_lock lock;
	__u64 after;
} state SEC(".data.state");

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	__u64 value;

	bpf_spin_lock(&state.lock);
	value = ++state.after;
	bpf_spin_unlock(&state.lock);
	return value > 0 && !state.before ? XDP_PASS : XDP_DROP;
}
