/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Reading packets, for XDP and TC alike: Ethernet, VLAN tags, IPv4 with options, IPv6 with
 * extension headers, fragments, ports.
 *
 * Every function takes the packet's bounds and never reads outside them. A length that a packet
 * states is believed only where it is checked: ports are read only if they lie inside what the IP
 * header says the packet is, so Ethernet padding is never taken for a header.
 */
#ifndef CANOPY_PACKET_H
#define CANOPY_PACKET_H

#include <canopy/bpf.h>

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

/*
 * VLAN tags read. Linux takes off any number of them: each that has a VLAN interface, and all with
 * VLAN id 0 (priority tags), which it delivers to the plain interface. A real network has two.
 */
#define CANOPY_VLAN_DEPTH 32
/* At least the bytes of so many tags, in whole bits, for the verifier. */
#define CANOPY_VLAN_BYTES 0xff
/*
 * IPv6 extension headers followed. RFC 8200 expects each at most once, destination options
 * twice: seven at most. What goes deeper is left at the header reached, without ports.
 */
#define CANOPY_IPV6_DEPTH 8
/* Bits of the highest number of octets behind an extension header's first 8: 255 times 8. */
#define CANOPY_IPV6_REST      0x7ff

#define CANOPY_IP_OFFSET      0x1fff /* fragment offset, RFC 791 */
#define CANOPY_IP_MF          0x2000 /* more fragments, RFC 791 */
#define CANOPY_IPV6_OFFSET    0xfff8 /* fragment offset, RFC 8200, 4.5 */
#define CANOPY_IPV6_MF        0x0001 /* more fragments, RFC 8200, 4.5 */
#define CANOPY_NEXTHDR_HOP    0
#define CANOPY_NEXTHDR_ROUTE  43
#define CANOPY_NEXTHDR_FRAG   44
#define CANOPY_NEXTHDR_AUTH   51
#define CANOPY_NEXTHDR_DEST   60
#define CANOPY_NEXTHDR_MOBILE 135
#define CANOPY_NEXTHDR_HIP    139
#define CANOPY_NEXTHDR_SHIM6  140

/* What a frame carries. */
enum canopy_l3 {
	CANOPY_OTHER,     /* not IP: ARP, LLDP … */
	CANOPY_IPV4,      /* a whole IPv4 header */
	CANOPY_IPV6,      /* a whole IPv6 header */
	CANOPY_MALFORMED, /* says it is IP, or tagged, and is not, or ends too early */
	CANOPY_DEEP,      /* more than CANOPY_VLAN_DEPTH tags: what is behind them is not known */
};

/* Where the packet was caught, which decides what its lengths may say. */
enum canopy_at {
	CANOPY_WIRE,  /* XDP: one frame */
	CANOPY_STACK, /* TC: may be many segments in one buffer, whose stated length may be 0 */
};

/* A packet's bounds, and how far it was read. */
struct canopy_cursor {
	void *at;
	void *end;
	bool cut; /* a header reaches beyond `end` */
};

/* An address; IPv4 ones as ::ffff:a.b.c.d. */
union canopy_address {
	__u8 bytes[16];
	__be32 words[4];
};
CANOPY_ASSERT_SIZE(union canopy_address, 16);

/* What identifies a packet's flow. */
struct canopy_tuple {
	union canopy_address source;
	union canopy_address destination;
	__be16 source_port; /* 0 where there is none, or where it is in another fragment */
	__be16 destination_port;
	__u8 protocol; /* IP protocol number, behind the extension headers */
	__u8 fragment; /* 1 if a fragment, the first included */
	__u8 ports;    /* 1 if the ports were read */
	__u8 family;   /* 4 or 6: ::ffff:a.b.c.d may also be written in an IPv6 header */
};
CANOPY_ASSERT_SIZE(struct canopy_tuple, 40);

/*
 * The first 8 octets of an extension header (RFC 8200, 4; RFC 4302 for AH): none is shorter. The
 * last two fields are the fragment header's.
 */
struct canopy_ipv6_extension {
	__u8 next;
	__u8 length; /* 8-octet units beyond the first; AH: 4-octet units beyond the second */
	__be16 offset_flags;
	__be32 identification;
};
CANOPY_ASSERT_SIZE(struct canopy_ipv6_extension, 8);

/* IEEE 802.1Q tag, as it stands behind the EtherType that announces it. */
struct canopy_vlan {
	__be16 tci;
	__be16 protocol;
};

/* TCP, UDP, UDP-Lite, SCTP and DCCP all begin with these. */
struct canopy_ports {
	__be16 source;
	__be16 destination;
};

/*
 * Points `at` at the next `length` bytes and moves past them. Returns 0, or -1 where the packet
 * ends before. Success is a number here and below, never a pointer that may be NULL: the verifier
 * does not know that a packet pointer is not, and would follow the failure with it.
 */
static __always_inline int canopy_take(struct canopy_cursor *cursor, __u32 length, void **at)
{
	void *start = cursor->at;

	if (start + length > cursor->end) {
		cursor->cut = true;
		return -1;
	}
	cursor->at = start + length;
	*at = start;
	return 0;
}

static __always_inline bool canopy_is_vlan(__be16 type)
{
	return type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD);
}

/* What reading the link layer came to. */
enum canopy_link {
	CANOPY_LINK_READ,
	CANOPY_LINK_CUT,  /* the frame is too short */
	CANOPY_LINK_DEEP, /* it has more tags than are read */
};

/*
 * Reads the VLAN tags, of which `type` announces the first. The loop has one way out, with the
 * answer in one variable: of several, clang -O1 makes numbers that the verifier takes for pointers.
 */
static __always_inline enum canopy_link canopy_take_tags(struct canopy_cursor *cursor, __be16 *type)
{
	enum canopy_link link = CANOPY_LINK_DEEP;
	void *first = cursor->at, *behind;
	__u64 bytes;

#pragma clang loop unroll(disable)
	for (int depth = 0; depth < CANOPY_VLAN_DEPTH; depth++) {
		struct canopy_vlan *vlan;

		if (canopy_take(cursor, sizeof(*vlan), (void **)&vlan)) {
			link = CANOPY_LINK_CUT;
			break;
		}
		*type = vlan->protocol;
		if (canopy_likely(!canopy_is_vlan(*type))) {
			link = CANOPY_LINK_READ;
			break;
		}
	}
	if (link != CANOPY_LINK_READ)
		return link;
	/*
	 * The verifier knows nothing of a difference of pointers: whatever follows is verified
	 * once, not once for every number of tags.
	 */
	behind = cursor->at;
	canopy_opaque(behind);
	bytes = behind - first;
	cursor->at = first + (bytes & CANOPY_VLAN_BYTES);
	return CANOPY_LINK_READ;
}

/*
 * Reads the Ethernet header and the VLAN tags. On CANOPY_LINK_READ the cursor is at the network
 * header and `protocol` is its EtherType.
 */
static __always_inline enum canopy_link canopy_take_ethernet(struct canopy_cursor *cursor,
							     __be16 *protocol)
{
	struct ethhdr *ethernet;

	if (canopy_take(cursor, sizeof(*ethernet), (void **)&ethernet))
		return CANOPY_LINK_CUT;
	*protocol = ethernet->h_proto;
	if (canopy_unlikely(canopy_is_vlan(*protocol)))
		return canopy_take_tags(cursor, protocol);
	return CANOPY_LINK_READ;
}

/*
 * Reads an IPv4 header with its options. Returns -1 where it is short or contradicts itself; else
 * 0, the cursor is behind it, and `payload` is the number of bytes the header says follow, or ~0
 * where it cannot say.
 */
static __always_inline int canopy_take_ipv4(struct canopy_cursor *cursor, enum canopy_at where,
					    struct iphdr **header, __u32 *payload)
{
	__u32 length, total;
	struct iphdr *ip;
	void *options;

	if (canopy_take(cursor, sizeof(*ip), (void **)&ip) || ip->version != 4 || ip->ihl < 5)
		return -1;
	length = ip->ihl * 4;
	total = bpf_ntohs(ip->tot_len);
	if (where == CANOPY_STACK && total == 0)
		*payload = ~0U;
	else if (total < length)
		return -1;
	else
		*payload = total - length;
	*header = ip;
	return canopy_take(cursor, length - sizeof(*ip), &options);
}

/* The same for the fixed IPv6 header. A payload length of 0 can mean a jumbogram (RFC 2675). */
static __always_inline int canopy_take_ipv6(struct canopy_cursor *cursor, enum canopy_at where,
					    struct ipv6hdr **header, __u32 *payload)
{
	struct ipv6hdr *ip;

	if (canopy_take(cursor, sizeof(*ip), (void **)&ip) || ip->version != 6)
		return -1;
	*payload = bpf_ntohs(ip->payload_len);
	if (*payload == 0 && (where == CANOPY_STACK || ip->nexthdr == CANOPY_NEXTHDR_HOP))
		*payload = ~0U;
	*header = ip;
	return 0;
}

/* The IP header of a frame. */
union canopy_header {
	struct iphdr *ipv4;
	struct ipv6hdr *ipv6;
};

/*
 * Reads a frame up to its IP header. On CANOPY_IPV4 and CANOPY_IPV6 `header` points at it, and
 * source and destination can be read; options and extension headers are not looked at, beyond
 * that IPv4's must be there.
 */
static __always_inline enum canopy_l3 canopy_take_l3(struct canopy_cursor *cursor,
						     enum canopy_at where,
						     union canopy_header *header, __u32 *payload)
{
	__be16 protocol = 0;

	switch (canopy_take_ethernet(cursor, &protocol)) {
	case CANOPY_LINK_READ:
		break;
	case CANOPY_LINK_DEEP:
		return CANOPY_DEEP;
	default:
		return CANOPY_MALFORMED;
	}
	if (protocol == bpf_htons(ETH_P_IP)) {
		if (canopy_take_ipv4(cursor, where, &header->ipv4, payload))
			return CANOPY_MALFORMED;
		return CANOPY_IPV4;
	}
	if (protocol == bpf_htons(ETH_P_IPV6)) {
		if (canopy_take_ipv6(cursor, where, &header->ipv6, payload))
			return CANOPY_MALFORMED;
		return CANOPY_IPV6;
	}
	return CANOPY_OTHER;
}

/*
 * Whether the packet states to have more bytes than the `left` ones that are there behind its IP
 * header (IPv6: the fixed header). `payload` is what canopy_take_l3 says of it.
 */
static __always_inline bool canopy_reaches_beyond(__u32 payload, __u64 left)
{
	return payload > left && payload != ~0U;
}

/* An IPv4 address in the form both families share. */
static __always_inline void canopy_map_ipv4(union canopy_address *address, __be32 ipv4)
{
	address->words[0] = 0;
	address->words[1] = 0;
	address->words[2] = bpf_htonl(0xffff);
	address->words[3] = ipv4;
}

static __always_inline void canopy_copy_ipv6(union canopy_address *address,
					     const struct in6_addr *ipv6)
{
	__builtin_memcpy(address->bytes, ipv6, sizeof(address->bytes));
}

/* Whether `next` announces an extension header that can be read. ESP is encrypted: it is not. */
static __always_inline bool canopy_is_ipv6_extension(__u8 next)
{
	return next == CANOPY_NEXTHDR_HOP || next == CANOPY_NEXTHDR_ROUTE ||
	       next == CANOPY_NEXTHDR_FRAG || next == CANOPY_NEXTHDR_AUTH ||
	       next == CANOPY_NEXTHDR_DEST || next == CANOPY_NEXTHDR_MOBILE ||
	       next == CANOPY_NEXTHDR_HIP || next == CANOPY_NEXTHDR_SHIM6;
}

/*
 * 1 where two numbers below 2^31 are the same, else 0, without a branch. The verifier follows both
 * ways of every branch; in a loop over headers of different lengths that is more than it can walk.
 */
static __always_inline __u32 canopy_same(__u32 a, __u32 b)
{
	__u32 difference = a ^ b;

	canopy_opaque(difference);
	return (difference - 1) >> 31;
}

/*
 * Follows the extension headers. On success `tuple->protocol` is the first that is not one, and
 * `later` says whether this is a later fragment, whose ports are elsewhere. Stops, without ports,
 * at a later fragment (what follows is the middle of something) and behind CANOPY_IPV6_DEPTH
 * headers. Returns 0, or -1 where a header is announced and missing.
 */
static __always_inline int canopy_take_ipv6_extensions(struct canopy_cursor *cursor,
						       struct canopy_tuple *tuple, __u8 next,
						       __u32 *payload, bool *later)
{
	__u32 read = 0, offset_flags = 0;

#pragma clang loop unroll(disable)
	for (int depth = 0; depth < CANOPY_IPV6_DEPTH; depth++) {
		__u32 is_auth = canopy_same(next, CANOPY_NEXTHDR_AUTH);
		__u32 is_fragment = canopy_same(next, CANOPY_NEXTHDR_FRAG);
		struct canopy_ipv6_extension *extension;
		__u32 rest;
		void *data;

		if (!canopy_is_ipv6_extension(next))
			break;
		if (canopy_take(cursor, sizeof(*extension), (void **)&extension))
			return -1;
		next = extension->next;
		/* Units of 8 octets, of 4 in AH; a fragment header has no more than the first 8. */
		rest = (extension->length << (3 - is_auth)) & (is_fragment - 1);
		/* The verifier loses the range in a shift by a variable. */
		canopy_opaque(rest);
		rest &= CANOPY_IPV6_REST;
		if (canopy_take(cursor, rest, &data))
			return -1;
		read += sizeof(*extension) + rest;
		offset_flags |= bpf_ntohs(extension->offset_flags) & -is_fragment;
		if (offset_flags & CANOPY_IPV6_OFFSET)
			break;
	}
	if (read > *payload)
		return -1;
	if (*payload != ~0U)
		*payload -= read;
	tuple->protocol = next;
	/* Neither offset nor more to come: an atomic fragment, a whole packet (RFC 6946). */
	tuple->fragment = !!(offset_flags & (CANOPY_IPV6_OFFSET | CANOPY_IPV6_MF));
	*later = offset_flags & CANOPY_IPV6_OFFSET;
	return 0;
}

/* Whether the protocol's header begins with two ports. */
static __always_inline bool canopy_has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP ||
	       protocol == IPPROTO_UDPLITE || protocol == IPPROTO_DCCP;
}

/*
 * Reads everything that identifies the packet's flow. The tuple is whole on CANOPY_IPV4 and
 * CANOPY_IPV6, zero otherwise; `headers` is then the number of bytes in front of the transport
 * header. A first fragment, or a packet, that ends before its ports is malformed; a later fragment
 * has none.
 */
static __always_inline enum canopy_l3 canopy_parse_headers(void *data, void *end,
							   enum canopy_at where,
							   struct canopy_tuple *tuple,
							   __u32 *headers)
{
	struct canopy_cursor cursor = {.at = data, .end = end};
	struct canopy_ports *ports;
	bool later = false;
	__u32 payload = 0;
	union canopy_header header;
	enum canopy_l3 l3;

	*headers = 0;
	__builtin_memset(tuple, 0, sizeof(*tuple));
	l3 = canopy_take_l3(&cursor, where, &header, &payload);
	if (l3 == CANOPY_IPV4) {
		struct iphdr *ip = header.ipv4;
		__u16 offset_flags = bpf_ntohs(ip->frag_off);

		canopy_map_ipv4(&tuple->source, ip->saddr);
		canopy_map_ipv4(&tuple->destination, ip->daddr);
		tuple->protocol = ip->protocol;
		tuple->family = 4;
		tuple->fragment = !!(offset_flags & (CANOPY_IP_OFFSET | CANOPY_IP_MF));
		later = offset_flags & CANOPY_IP_OFFSET;
	} else if (l3 == CANOPY_IPV6) {
		struct ipv6hdr *ip = header.ipv6;

		canopy_copy_ipv6(&tuple->source, &ip->saddr);
		canopy_copy_ipv6(&tuple->destination, &ip->daddr);
		tuple->family = 6;
		if (canopy_take_ipv6_extensions(&cursor, tuple, ip->nexthdr, &payload, &later))
			goto malformed;
	} else {
		return l3;
	}
	*headers = cursor.at - data;
	if (later || !canopy_has_ports(tuple->protocol))
		return l3;
	if (payload < sizeof(*ports))
		goto malformed;
	if (canopy_take(&cursor, sizeof(*ports), (void **)&ports))
		goto malformed;
	tuple->source_port = ports->source;
	tuple->destination_port = ports->destination;
	tuple->ports = 1;
	return l3;

malformed:
	__builtin_memset(tuple, 0, sizeof(*tuple));
	return CANOPY_MALFORMED;
}

/* The same, where nobody asks for the number of bytes. */
static __always_inline enum canopy_l3 canopy_parse(void *data, void *end, enum canopy_at where,
						   struct canopy_tuple *tuple)
{
	__u32 headers;

	return canopy_parse_headers(data, end, where, tuple, &headers);
}

#endif
