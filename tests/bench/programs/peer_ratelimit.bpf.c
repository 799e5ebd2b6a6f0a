/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the field writes to limit packets by source: a hash of token buckets (tokens and the time of
 * the last refill), each under its spin lock; Ethernet, one VLAN tag, IPv4 and IPv6; one per-CPU
 * counter a packet. No canopy headers.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define NSEC_PER_SEC 1000000000ULL

struct bucket {
	struct bpf_spin_lock lock;
	__u32 tokens;
	__u64 refilled; /* ns */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct in6_addr);
	__type(value, struct bucket);
} buckets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} verdicts SEC(".maps");

struct config {
	__u32 rate;
	__u32 burst;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct config);
} config SEC(".maps");

static __always_inline int verdict(__u32 dropped)
{
	__u64 *count = bpf_map_lookup_elem(&verdicts, &dropped);

	if (count)
		*count += 1;
	return dropped ? XDP_DROP : XDP_PASS;
}

SEC("xdp")
int peer(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = data;
	struct in6_addr source = {};
	struct bucket *bucket;
	struct config *set;
	__u64 now, due;
	__u32 slot = 0;
	__be16 type;
	int pass;

	if (data + sizeof(*ethernet) > end)
		return XDP_PASS;
	type = ethernet->h_proto;
	data += sizeof(*ethernet);
	if (type == bpf_htons(ETH_P_8021Q)) {
		if (data + 4 > end)
			return XDP_PASS;
		type = *(__be16 *)(data + 2);
		data += 4;
	}
	if (type == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data;

		if (data + sizeof(*ip) > end)
			return XDP_PASS;
		source.in6_u.u6_addr32[3] = ip->saddr;
	} else if (type == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = data;

		if (data + sizeof(*ip) > end)
			return XDP_PASS;
		source = ip->saddr;
	} else {
		return XDP_PASS;
	}

	set = bpf_map_lookup_elem(&config, &slot);
	if (!set)
		return XDP_PASS;
	now = bpf_ktime_get_ns();
	bucket = bpf_map_lookup_elem(&buckets, &source);
	if (!bucket) {
		struct bucket first = {.tokens = set->burst - 1, .refilled = now};

		bpf_map_update_elem(&buckets, &source, &first, BPF_ANY);
		return verdict(0);
	}
	bpf_spin_lock(&bucket->lock);
	due = (now - bucket->refilled) * set->rate / NSEC_PER_SEC;
	if (due > 0) {
		due += bucket->tokens;
		bucket->tokens = due > set->burst ? set->burst : due;
		bucket->refilled = now;
	}
	pass = bucket->tokens > 0;
	if (pass)
		bucket->tokens--;
	bpf_spin_unlock(&bucket->lock);
	return verdict(!pass);
}

char _license[] SEC("license") = "GPL";
