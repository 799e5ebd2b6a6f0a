/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Counts the packets and bytes of each flow: addresses, ports and protocol.
 *
 * It only looks: every packet goes on. A segment that the stack keeps in one large buffer counts
 * as the packets it is on the wire. Fragments behind the first carry no ports and are counted in
 * a flow of their own, with ports 0; so are protocols without ports.
 */
#include <canopy/bpf.h>
#include <canopy/packet.h>

#define MAX_FLOWS 65536
/*
 * Bytes that hold every header worth reading: two tags, IPv6, and some extension headers. The
 * front of a packet may lie outside the buffer's linear part.
 */
#define PULL_BYTES 256
/* TC_ACT_UNSPEC of linux/pkt_cls.h, TCX_NEXT of linux/bpf.h: the next program decides. */
#define TC_UNSPEC -1

/* Slots of `totals`. */
enum total {
	TOTAL_FLOW,      /* IP packets */
	TOTAL_FRAGMENT,  /* of these, fragments */
	TOTAL_MALFORMED, /* cut short, or contradicting itself */
	TOTAL_OTHER,     /* not IP */
	TOTAL_UNTRACKED, /* IP packets for whose flow there was no memory */
	TOTALS,
};

struct count {
	__u64 packets;
	__u64 bytes;
};
CANOPY_ASSERT_SIZE(struct count, 16);

/* In the key `fragment`, `ports` and `unused` are 0: they belong to a packet, not to a flow. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_FLOWS);
	__type(key, struct canopy_tuple);
	__type(value, struct count);
} fm_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TOTALS);
	__type(key, __u32);
	__type(value, struct count);
} fm_totals SEC(".maps");

static __always_inline void add_total(__u32 slot, const struct count *size)
{
	struct count *total = bpf_map_lookup_elem(&fm_totals, &slot);

	if (total) {
		total->packets += size->packets;
		total->bytes += size->bytes;
	}
}

static __always_inline void add_flow(const struct canopy_tuple *flow, const struct count *size)
{
	struct count *count = bpf_map_lookup_elem(&fm_flows, flow);

	if (!count) {
		if (!bpf_map_update_elem(&fm_flows, flow, size, BPF_NOEXIST))
			return;
		/* Another CPU saw the flow first; or there is no memory. */
		count = bpf_map_lookup_elem(&fm_flows, flow);
		if (!count) {
			add_total(TOTAL_UNTRACKED, size);
			return;
		}
	}
	__sync_fetch_and_add(&count->packets, size->packets);
	__sync_fetch_and_add(&count->bytes, size->bytes);
}

SEC("tc")
int flowmeter(struct __sk_buff *skb)
{
	/* wire_len counts the headers that segmentation will add; it is 0 in old test runs. */
	struct count size = {
		.packets = skb->gso_segs ?: 1,
		.bytes = skb->wire_len ?: skb->len,
	};
	struct canopy_tuple flow;
	enum canopy_l3 l3;

	for (int attempt = 0; attempt < 2; attempt++) {
		l3 = canopy_parse((void *)(long)skb->data, (void *)(long)skb->data_end,
				  CANOPY_STACK, &flow);
		if (l3 != CANOPY_MALFORMED || skb->data_end - skb->data >= skb->len)
			break;
		if (bpf_skb_pull_data(skb, skb->len < PULL_BYTES ? skb->len : PULL_BYTES))
			break;
	}

	switch (l3) {
	case CANOPY_IPV4:
	case CANOPY_IPV6:
		add_total(TOTAL_FLOW, &size);
		if (flow.fragment)
			add_total(TOTAL_FRAGMENT, &size);
		flow.fragment = 0;
		flow.ports = 0;
		add_flow(&flow, &size);
		break;
	case CANOPY_MALFORMED:
		add_total(TOTAL_MALFORMED, &size);
		break;
	default:
		add_total(TOTAL_OTHER, &size);
		break;
	}
	return TC_UNSPEC;
}

char _license[] SEC("license") = "GPL";
