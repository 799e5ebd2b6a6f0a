// SPDX-License-Identifier: GPL-2.0
/* A timer in a map's values, with a function that it calls. */
#include "shape.h"

struct timed {
	struct bpf_timer timer;
	__u64 fired;
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct timed);
} timers SEC(".maps");

static int fire(void *map, __u32 *key, struct timed *timed)
{
	timed->fired++;
	return 0;
}

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct timed *timed = bpf_map_lookup_elem(&timers, &zero);

	if (!timed)
		return XDP_ABORTED;
	bpf_timer_init(&timed->timer, &timers, 1 /* CLOCK_MONOTONIC */);
	bpf_timer_set_callback(&timed->timer, fire);
	return bpf_timer_start(&timed->timer, 1000000000, 0) ? XDP_DROP : XDP_PASS;
}
