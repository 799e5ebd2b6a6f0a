// SPDX-License-Identifier: GPL-2.0-only
/*
 * @NAME@: drops IPv4 UDP packets to one port, and counts what it sees.
 *
 * Everything here is a starting point: package.yaml says what the program is called, what can be
 * set and what is counted.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Set by `config.port`; 0 drops nothing. */
const volatile __u16 port = 0;

enum { SEEN, DROPPED, COUNTERS };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

static __always_inline void count(__u32 counter)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &counter);

	if (value)
		*value += 1;
}

static __always_inline int is_blocked(void *data, void *end)
{
	struct ethhdr *eth = data;
	struct iphdr *ip = data + sizeof(*eth);
	struct udphdr *udp;

	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return 0;
	/* Only a first fragment has ports. */
	if (ip->protocol != IPPROTO_UDP || ip->ihl < 5 || (ip->frag_off & bpf_htons(0x1fff)))
		return 0;
	udp = (void *)ip + ip->ihl * 4;
	if ((void *)(udp + 1) > end)
		return 0;
	return port && udp->dest == bpf_htons(port);
}

SEC("tc")
int @FUNCTION@(struct __sk_buff *ctx)
{
	count(SEEN);
	if (!is_blocked((void *)(long)ctx->data, (void *)(long)ctx->data_end))
		return TC_ACT_OK;
	count(DROPPED);
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "GPL";
