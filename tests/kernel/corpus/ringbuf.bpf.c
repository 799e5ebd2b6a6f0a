// SPDX-License-Identifier: GPL-2.0
/* A ring buffer whose size the configuration gives, and a perf event array sized by the CPUs. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 5000); /* not a power of two */
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} samples SEC(".maps");

__u64 reported;
long last_error;

SEC("xdp")
int report(struct xdp_md *ctx)
{
	__u64 *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	__u64 sample = 1;

	if (event) {
		*event = ++reported;
		bpf_ringbuf_submit(event, 0);
	}
	last_error =
		bpf_perf_event_output(ctx, &samples, BPF_F_CURRENT_CPU, &sample, sizeof(sample));
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
