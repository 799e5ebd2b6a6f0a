// SPDX-License-Identifier: GPL-2.0
/*
 * One program in three objects: sums the bytes of each packet's payload by a loop in C, or with
 * -DLOOP by bpf_loop() and with a record in a ring buffer for each packet. With -DLATER it drops
 * everything: it is for a kernel that no test runs on.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define MOST 128

struct seen {
	__u64 packets;
	__u64 sum;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct seen);
} seen SEC(".maps");

#ifdef LOOP
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} records SEC(".maps");

struct walk {
	struct xdp_md *ctx;
	__u64 sum;
};

static long add(__u32 index, struct walk *walk)
{
	__u8 *data = (void *)(long)walk->ctx->data, *end = (void *)(long)walk->ctx->data_end;

	if (index >= MOST || data + index + 1 > end)
		return 1;
	walk->sum += data[index];
	return 0;
}
#endif

SEC("xdp")
int variants(struct xdp_md *ctx)
{
	__u32 slot = 0;
	struct seen *all = bpf_map_lookup_elem(&seen, &slot);
	__u64 sum = 0;

	if (!all)
		return XDP_ABORTED;
#ifdef LOOP
	struct walk walk = {.ctx = ctx};

	bpf_loop(MOST, add, &walk, 0);
	sum = walk.sum;
	bpf_ringbuf_output(&records, &sum, sizeof(sum), 0);
#else
	__u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	for (__u32 i = 0; i < MOST; i++) {
		if (data + i + 1 > end)
			break;
		sum += data[i];
	}
#endif
	__sync_fetch_and_add(&all->packets, 1);
	__sync_fetch_and_add(&all->sum, sum);
#ifdef LATER
	return XDP_DROP;
#else
	return XDP_PASS;
#endif
}

char _license[] SEC("license") = "GPL";
