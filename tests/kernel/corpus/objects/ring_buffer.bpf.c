// SPDX-License-Identifier: GPL-2.0
/* A ring buffer whose size is no power of two. */
#include "shape.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 5000);
} events SEC(".maps");

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	__u64 *event = bpf_ringbuf_reserve(&events, 8, 0);

	if (!event)
		return XDP_DROP;
	*event = 1;
	bpf_ringbuf_submit(event, 0);
	return XDP_PASS;
}
