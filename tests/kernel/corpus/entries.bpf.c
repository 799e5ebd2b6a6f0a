// SPDX-License-Identifier: GPL-2.0
/* A hash whose size and contents are left to the configuration, and state worth keeping. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#ifdef WIDER
struct state {
	__u64 seen;
	__u64 more;
};
#elif defined(RENAMED)
struct state {
	__u64 bytes;
};
#else
struct state {
	__u64 seen;
};
#endif

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u16);
	__type(value, __u32);
} allowed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct state);
} kept SEC(".maps");

__u64 packets;

SEC("xdp")
int entries(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;
	__u32 zero = 0;
	struct state *state = bpf_map_lookup_elem(&kept, &zero);
	__u16 type;

	packets++;
	if (state)
		*(__u64 *)state += 1;
	if ((void *)(data + 14) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	type = data[12] << 8 | data[13];
	return bpf_map_lookup_elem(&allowed, &type) ? XDP_PASS : XDP_DROP;
}

char _license[] SEC("license") = "GPL";
