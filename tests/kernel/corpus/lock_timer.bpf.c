// SPDX-License-Identifier: GPL-2.0
/* A spin lock and a timer in map values: both need the map's type information. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct locked {
	struct bpf_spin_lock lock;
	__u32 count;
};

struct timed {
	struct bpf_timer timer;
	__u64 fired;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct locked);
} locks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct timed);
} timers SEC(".maps");

__u64 fired;

static int on_timer(void *map, __u32 *key, struct timed *value)
{
	fired++;
	return 0;
}

SEC("xdp")
int lock_timer(struct xdp_md *ctx)
{
	__u32 key = 0;
	struct locked *locked = bpf_map_lookup_elem(&locks, &key);
	struct timed *timed = bpf_map_lookup_elem(&timers, &key);

	if (!locked || !timed)
		return XDP_ABORTED;
	bpf_spin_lock(&locked->lock);
	locked->count++;
	bpf_spin_unlock(&locked->lock);
	bpf_timer_init(&timed->timer, &timers, 1 /* CLOCK_MONOTONIC */);
	bpf_timer_set_callback(&timed->timer, on_timer);
	bpf_timer_start(&timed->timer, 1, 0);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
