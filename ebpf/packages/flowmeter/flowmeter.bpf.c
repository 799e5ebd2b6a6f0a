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
 * Bytes that hold every header worth reading: all tags, IPv6, and some extension headers. The
 * front of a packet may lie outside the buffer's linear part.
 */
#define PULL_BYTES 512
/* Of a VLAN tag, also of one that the kernel keeps beside the packet. */
#define TAG_BYTES sizeof(struct canopy_vlan)
#define UDP_BYTES 8
/* Where in a TCP header its own length is, in its upper four bits (RFC 9293). */
#define TCP_LENGTH_AT 12
#define TCP_MIN_BYTES 20
/* TC_ACT_UNSPEC of linux/pkt_cls.h, TCX_NEXT of linux/bpf.h: the next program decides. */
#define TC_UNSPEC -1

/* Slots of `totals`. */
enum total {
	TOTAL_FLOW,      /* IP packets */
	TOTAL_FRAGMENT,  /* of these, fragments */
	TOTAL_MALFORMED, /* cut short, contradicting itself, or with too many tags */
	TOTAL_OTHER,     /* not IP */
	TOTAL_UNTRACKED, /* IP packets for whose flow there was no memory */
	TOTALS,
};

struct count {
	__u64 packets;
	__u64 bytes;
};
CANOPY_ASSERT_SIZE(struct count, 16);

/* In the key `fragment` and `ports` are 0: they belong to a packet, not to a flow. */
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

/*
 * Bytes of the headers that segmentation repeats in each packet: those in front of the transport
 * header, and that. 0 where they are not known.
 */
static __always_inline __u32 repeated_headers(struct __sk_buff *skb, __u8 protocol, __u32 headers)
{
	__u8 length;

	switch (protocol) {
	case IPPROTO_TCP:
		if (bpf_skb_load_bytes(skb, headers + TCP_LENGTH_AT, &length, sizeof(length)))
			return 0;
		length = (length >> 4) * 4;
		return length < TCP_MIN_BYTES ? 0 : headers + length;
	case IPPROTO_UDP:
		return headers + UDP_BYTES;
	default:
		return 0;
	}
}

/*
 * What the buffer is on the wire. Its own length has the Ethernet header, at ingress too (wire_len
 * has not, there), and neither a tag that the kernel keeps beside the packet nor the headers of the
 * packets behind the first.
 */
static __always_inline void measure(struct __sk_buff *skb, const struct canopy_tuple *flow,
				    __u32 headers, struct count *size)
{
	__u32 length = skb->len, repeated, payload;

	size->packets = 1;
	size->bytes = length;
	if (skb->gso_size) {
		repeated = repeated_headers(skb, flow->protocol, headers);
		size->packets = skb->gso_segs;
		/* What a guest or a program hands over whole is not counted yet. */
		if (size->packets == 0) {
			payload = length > repeated ? length - repeated : 1;
			size->packets = (payload - 1) / skb->gso_size + 1;
		}
		size->bytes += (size->packets - 1) * repeated;
	}
	if (skb->vlan_present)
		size->bytes += size->packets * TAG_BYTES;
}

SEC("tc")
int flowmeter(struct __sk_buff *skb)
{
	struct canopy_tuple flow;
	struct count size;
	enum canopy_l3 l3;
	__u32 headers;

	for (int attempt = 0; attempt < 2; attempt++) {
		l3 = canopy_parse_headers((void *)(long)skb->data, (void *)(long)skb->data_end,
					  CANOPY_STACK, &flow, &headers);
		if (l3 != CANOPY_MALFORMED || skb->data_end - skb->data >= skb->len)
			break;
		if (bpf_skb_pull_data(skb, skb->len < PULL_BYTES ? skb->len : PULL_BYTES))
			break;
	}

	measure(skb, &flow, headers, &size);
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
	case CANOPY_DEEP:
		add_total(TOTAL_MALFORMED, &size);
		break;
	default:
		add_total(TOTAL_OTHER, &size);
		break;
	}
	return TC_UNSPEC;
}

char _license[] SEC("license") = "GPL";
