// SPDX-License-Identifier: GPL-2.0
/* An object of its own with a lock in it. */
#include "shape.h"

struct locked {
	__u64 before;
	struct bpf_spin_lock lock;
	__u64 value;
};

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	struct locked *locked = new_object(struct locked);
	__u64 value;

	if (!locked)
		return XDP_ABORTED;
	locked->value = 0;
	bpf_spin_lock(&locked->lock);
	value = ++locked->value;
	bpf_spin_unlock(&locked->lock);
	drop(locked);
	return value == 1 ? XDP_PASS : XDP_DROP;
}
