/* SPDX-License-Identifier: MIT */
/* One of each thing a manifest can refer to. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct settings {
	__u32 rate;
	__u32 spare;
	__u64 idle;
};

struct flow {
	__u8 source[16];
	__u16 port;
	__u8 protocol;
	__u8 spare;
};

struct count {
	__u64 packets;
	__u64 bytes;
};

struct rule {
	__u32 index;
	__u32 length;
};

typedef struct settings settings_t;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, settings_t);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__uint(max_entries, 128);
	__type(key, struct flow);
	__type(value, struct count);
} flows SEC(".maps"), sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 16);
	__uint(key_size, 4);
	__uint(value_size, 8);
} totals SEC(".maps"), hits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u16);
	__type(value, __u32);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16);
	__uint(key_size, 8);
	__type(value, struct rule);
} blocked4 SEC(".maps"), allowed4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16);
	__uint(key_size, 20);
	__type(value, struct rule);
} blocked6 SEC(".maps"), allowed6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__uint(key_size, 4);
	__type(value, struct rule);
} hosts4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__uint(key_size, 16);
	__type(value, struct rule);
} hosts6 SEC(".maps");

const volatile _Bool loud = 0;
const volatile __u8 peer[6] = {};
const volatile __u8 allowed_in = 0;
const volatile __u32 wide = 0;
volatile char label[16] = {};

SEC("xdp")
int main_prog(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct settings *now = bpf_map_lookup_elem(&settings, &zero);

	if (loud && now && now->rate && peer[0])
		return XDP_DROP;
	label[0] = 1;
	bpf_map_lookup_elem(&totals, &zero);
	bpf_map_lookup_elem(&hits, &zero);
	bpf_map_lookup_elem(&ports, &zero);
	return XDP_PASS;
}

SEC("tc")
int out_prog(struct __sk_buff *skb)
{
	struct flow flow = {};

	bpf_map_lookup_elem(&flows, &flow);
	bpf_map_lookup_elem(&sources, &flow);
	bpf_map_lookup_elem(&blocked4, &flow);
	bpf_map_lookup_elem(&blocked6, &flow);
	if (allowed_in && wide) {
		bpf_map_lookup_elem(&allowed4, &flow);
		bpf_map_lookup_elem(&allowed6, &flow);
		bpf_map_lookup_elem(&hosts4, &flow);
		bpf_map_lookup_elem(&hosts6, &flow);
	}
	return 0;
}

char _license[] SEC("license") = "GPL";
