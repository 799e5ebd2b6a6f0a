/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the field writes to export flows: a hash by addresses, ports and protocol, with packets,
 * bytes, and the times of the first and the last packet; Ethernet, IPv4 and IPv6, TCP and UDP; no
 * tags, options, extension headers or segments. No canopy headers.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct flow {
	struct in6_addr source;
	struct in6_addr destination;
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 unused[3];
};

struct record {
	__u64 packets;
	__u64 bytes;
	__u64 first; /* ns */
	__u64 last;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow);
	__type(value, struct record);
} flows SEC(".maps");

SEC("classifier")
int peer(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *ethernet = data;
	struct flow flow = {};
	struct record *record;
	__be16 *ports;
	__u64 now;

	if (data + sizeof(*ethernet) > end)
		return 0;
	data += sizeof(*ethernet);
	if (ethernet->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data;

		if (data + sizeof(*ip) > end)
			return 0;
		flow.source.in6_u.u6_addr32[3] = ip->saddr;
		flow.destination.in6_u.u6_addr32[3] = ip->daddr;
		flow.protocol = ip->protocol;
		data += sizeof(*ip);
	} else if (ethernet->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = data;

		if (data + sizeof(*ip) > end)
			return 0;
		flow.source = ip->saddr;
		flow.destination = ip->daddr;
		flow.protocol = ip->nexthdr;
		data += sizeof(*ip);
	} else {
		return 0;
	}
	if (flow.protocol == IPPROTO_TCP || flow.protocol == IPPROTO_UDP) {
		ports = data;
		if (data + 2 * sizeof(*ports) > end)
			return 0;
		flow.source_port = ports[0];
		flow.destination_port = ports[1];
	}

	now = bpf_ktime_get_ns();
	record = bpf_map_lookup_elem(&flows, &flow);
	if (record) {
		__sync_fetch_and_add(&record->packets, 1);
		__sync_fetch_and_add(&record->bytes, skb->len);
		record->last = now;
	} else {
		struct record first = {.packets = 1, .bytes = skb->len, .first = now, .last = now};

		bpf_map_update_elem(&flows, &flow, &first, BPF_NOEXIST);
	}
	return 0;
}

char _license[] SEC("license") = "GPL";
