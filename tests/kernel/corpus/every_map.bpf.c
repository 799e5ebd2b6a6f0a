// SPDX-License-Identifier: GPL-2.0
/*
 * A map of every type that can be read from outside, and of those that cannot. What happens to a
 * UDP packet is in `verdicts`, by its destination port, which people write.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

enum act {
	ACT_PASS,
	ACT_DROP,
};

struct rule {
	enum act act;
	__u32 weight;
	__u64 hits;
	char name[8];
};

struct prefix {
	__u32 length;
	__u8 address[4];
};

struct locked {
	struct bpf_spin_lock lock;
	__u32 count;
};

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __be16);
	__type(value, struct rule);
} verdicts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, __s32);
} numbers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} packets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__uint(max_entries, 64);
	__type(key, __be16);
	__type(value, __u32);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, __u32);
} recent SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, __u32);
} prefixes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct locked);
} locks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 8);
	__type(value, __u32);
} queue SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__uint(max_entries, 8);
	__type(value, __u32);
} stack SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_BLOOM_FILTER);
	__uint(max_entries, 8);
	__type(value, __u32);
} bloom SEC(".maps");

/* What is told of a packet. */
struct event {
	__be16 port;
	__u16 unused;
	__u32 number;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
	__type(value, struct event);
} events SEC(".maps");

struct inner first SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, struct inner);
} by_index SEC(".maps") = {
	.values = {[2] = &first},
};

const volatile __u32 limit = 5;
__u32 level = 3;
static volatile __u16 half = 1;
__u64 seen;

SEC("xdp")
int every_map(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + ETH_HLEN;
	struct udphdr *udp = (void *)(ip + 1);
	__u32 zero = 0, two = 2, address, *number;
	struct prefix prefix = {.length = 32};
	struct event event = {};
	struct locked *locked;
	struct rule *rule;
	__u64 *packet;
	__be16 port;

	if ((void *)(udp + 1) > end || ip->protocol != IPPROTO_UDP || ip->ihl != 5)
		return XDP_PASS;
	seen += level > limit ? half : 1;
	port = udp->dest;
	address = ip->saddr;
	__builtin_memcpy(prefix.address, &address, 4);

	packet = bpf_map_lookup_elem(&packets, &zero);
	if (packet)
		*packet += 1;
	number = bpf_map_lookup_elem(&ports, &port);
	if (number)
		*number += 1;
	else
		bpf_map_update_elem(&ports, &port, &two, BPF_ANY);
	bpf_map_update_elem(&recent, &address, &level, BPF_ANY);
	locked = bpf_map_lookup_elem(&locks, &zero);
	if (locked) {
		bpf_spin_lock(&locked->lock);
		locked->count++;
		bpf_spin_unlock(&locked->lock);
	}
	bpf_map_push_elem(&queue, &level, BPF_ANY);
	bpf_map_push_elem(&stack, &level, BPF_ANY);
	bpf_map_push_elem(&bloom, &level, BPF_ANY);
	event.port = port;
	event.number = seen;
	bpf_ringbuf_output(&events, &event, sizeof(event), 0);
	number = bpf_map_lookup_elem(&numbers, &two);
	if (number && *number == 42 && bpf_map_lookup_elem(&by_index, &two))
		seen++;
	if (bpf_map_lookup_elem(&prefixes, &prefix))
		return XDP_DROP;

	rule = bpf_map_lookup_elem(&verdicts, &port);
	if (!rule)
		return XDP_PASS;
	__sync_fetch_and_add(&rule->hits, 1);
	return rule->act == ACT_DROP ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";
