/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Limits the packets a second of each source address by a token bucket.
 *
 * The bucket is kept in the form of the generic cell rate algorithm (ITU-T I.371, virtual
 * scheduling): instead of tokens and the time of the last refill, one number, the time at which
 * the bucket will be full again. It says the same and fits in 8 bytes, so a bucket is taken from
 * by one compare-and-swap, with no lock (the kernel allows none in an LRU map) and no window in
 * which two CPUs spend the same token. A limited packet writes nothing, so a flood costs one
 * lookup a packet.
 *
 * That time means something at one rate only, so each bucket says at which. When the rate has
 * changed, the first packet of a source brings its bucket to the new one: as many tokens are
 * missing afterwards as before.
 */
#include <canopy/bpf.h>
#include <canopy/packet.h>

#define MAX_SOURCES  65536
#define NSEC_PER_SEC 1000000000ULL
/*
 * Time is counted in 1/16 ns, so that the rounding of 1 s / rate stays below 0.1 % at the highest
 * rate; the clock then lasts 36 years of uptime.
 */
#define TIME_SHIFT 4
/*
 * A swap fails only when another CPU took a token of the same source in between. After this many
 * the packet is limited: the rate is never exceeded.
 */
#define MAX_TRIES 16
/* The interval of a bucket that another CPU is bringing to another rate; longer than any. */
#define CONVERTING (~0ULL)

/* Slots of `totals`. */
enum total {
	TOTAL_LIMITED, /* dropped: the bucket was empty */
	TOTAL_PASSED,  /* had a token */
	TOTAL_EXEMPT,  /* not IP, or no source could be read; always passed */
	TOTALS,
};

/* Set by the document, read once a packet. */
struct settings {
	__u32 rate;        /* packets a second and source; 0 limits nothing */
	__u32 burst;       /* packets a full bucket holds */
	__u32 ipv6_prefix; /* bits of an IPv6 address that make a source, 1..=128 */
};
CANOPY_ASSERT_SIZE(struct settings, 12);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} rl_settings SEC(".maps");

/* What a bucket belongs to. */
enum kind {
	KIND_DEEP,      /* frames with more tags than are read, all together */
	KIND_NEIGHBOUR, /* neighbour discovery of one IPv6 address */
	KIND_IPV4 = 4,
	KIND_IPV6 = 6,
};

struct source {
	union canopy_address address; /* IPv4 as ::ffff:a.b.c.d, IPv6 cut to its prefix */
	__u32 kind;
};
CANOPY_ASSERT_SIZE(struct source, 20);

struct bucket {
	__u64 full_at;  /* when it is full, in 1/16 ns of CLOCK_MONOTONIC, at one token each… */
	__u64 interval; /* …of these, in 1/16 ns */
};
CANOPY_ASSERT_SIZE(struct bucket, 16);

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_SOURCES);
	__type(key, struct source);
	__type(value, struct bucket);
} rl_sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TOTALS);
	__type(key, __u32);
	__type(value, __u64);
} rl_totals SEC(".maps");

/* Keeps the first `bits` of an address. */
static __always_inline void keep_prefix(union canopy_address *address, __u32 bits)
{
#pragma unroll
	for (__u32 i = 0; i < 4; i++) {
		if (bits <= 32 * i)
			address->words[i] = 0;
		else if (bits < 32 * (i + 1))
			address->words[i] &= bpf_htonl(~0U << (32 * (i + 1) - bits));
	}
}

/*
 * Whether every address in the network of this one is somebody else's, whatever the length of the
 * prefix: neighbours on the link (fe80::/10, RFC 4291), and the IPv4 hosts behind a translator
 * (64:ff9b::/96, RFC 6052).
 */
static __always_inline bool is_always_whole(const union canopy_address *address)
{
	return (address->words[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000) ||
	       (address->words[0] == bpf_htonl(0x0064ff9b) && address->words[1] == 0 &&
		address->words[2] == 0);
}

/*
 * Whether it is what IPv6 has in place of ARP (RFC 4861): a hop limit of 255 says that it was sent
 * on this link, and it has no extension headers (where some came it is a packet like any other).
 */
static __always_inline bool is_neighbour_discovery(struct canopy_cursor *cursor,
						   const struct ipv6hdr *ip)
{
	__u8 *icmp;

	if (canopy_likely(ip->nexthdr != IPPROTO_ICMPV6) || ip->hop_limit != 255)
		return false;
	/* Type and code; solicitations and advertisements of routers and neighbours are 133 to 136.
	 */
	if (canopy_take(cursor, 2, (void **)&icmp))
		return false;
	return icmp[0] >= 133 && icmp[0] <= 136 && icmp[1] == 0;
}

static __always_inline __u64 now(void)
{
	return bpf_ktime_get_ns() << TIME_SHIFT;
}

/*
 * Brings a bucket to another rate. One CPU does it; those that meet it at work return false, as it
 * does itself where others take tokens all the time: the packet is limited.
 */
static __always_inline bool convert(struct bucket *bucket, __u64 interval, __u32 burst)
{
	__u64 before = canopy_read_once(bucket->interval);
	bool converted = false;

	if (before == interval)
		return true;
	if (before == CONVERTING ||
	    __sync_val_compare_and_swap(&bucket->interval, before, CONVERTING) != before)
		return false;
	for (int i = 0; i < MAX_TRIES && !converted; i++) {
		__u64 seen = canopy_read_once(bucket->full_at), at = now(), missing = 0;

		/* A part of a token is a whole one: nothing is gained by a change. */
		if (seen > at)
			missing = (seen - at - 1) / before + 1;
		if (missing > burst)
			missing = burst;
		converted = __sync_val_compare_and_swap(&bucket->full_at, seen,
							at + missing * interval) == seen;
	}
	*(volatile __u64 *)&bucket->interval = converted ? interval : before;
	return converted;
}

/*
 * Takes a token of the source's bucket. The loop has one way out, with the answer in one variable:
 * of several, clang -O1 makes numbers that the verifier takes for pointers.
 */
static __always_inline bool take_token(const struct source *source, const struct settings *settings)
{
	__u64 interval = (NSEC_PER_SEC << TIME_SHIFT) / settings->rate;
	__u64 room = settings->burst * interval, at = now();
	struct bucket *bucket = bpf_map_lookup_elem(&rl_sources, source);
	bool token = false;

	if (!bucket) {
		struct bucket taken = {.full_at = at + interval, .interval = interval};

		if (settings->burst == 0)
			return false;
		if (!bpf_map_update_elem(&rl_sources, source, &taken, BPF_NOEXIST))
			return true;
		/* Another CPU saw the source first; or there is no memory, and nothing to keep. */
		bucket = bpf_map_lookup_elem(&rl_sources, source);
		if (!bucket)
			return true;
	}

	if (canopy_unlikely(canopy_read_once(bucket->interval) != interval) &&
	    !convert(bucket, interval, settings->burst))
		return false;
	for (int i = 0; i < MAX_TRIES && !token; i++) {
		__u64 seen = canopy_read_once(bucket->full_at), full_at;

		/*
		 * Read behind `full_at`: what is swapped below was a time at this interval. Another
		 * CPU may have changed it just now.
		 */
		if (canopy_unlikely(canopy_read_once(bucket->interval) != interval))
			break;
		full_at = (seen > at ? seen : at) + interval;
		if (full_at - at <= room) {
			token = __sync_val_compare_and_swap(&bucket->full_at, seen, full_at) ==
				seen;
			continue;
		}
		/*
		 * No bucket misses more than it holds. One that does held more before, and is empty
		 * now. The clock is read again: another CPU may have taken a token since `at`.
		 */
		if (canopy_unlikely(seen > at + room)) {
			full_at = now() + room;
			if (seen > full_at)
				__sync_val_compare_and_swap(&bucket->full_at, seen, full_at);
		}
		break;
	}
	return token;
}

SEC("xdp.frags")
int ratelimit(struct xdp_md *ctx)
{
	struct canopy_cursor cursor = {
		.at = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
	};
	struct source source = {};
	struct settings *live, set;
	union canopy_header header;
	__u32 payload, slot = 0;

	live = bpf_map_lookup_elem(&rl_settings, &slot);
	if (!live)
		return XDP_PASS;
	set.rate = canopy_read_once(live->rate);
	set.burst = canopy_read_once(live->burst);
	set.ipv6_prefix = canopy_read_once(live->ipv6_prefix);

	switch (canopy_take_l3(&cursor, CANOPY_WIRE, &header, &payload)) {
	case CANOPY_IPV4:
		source.kind = KIND_IPV4;
		canopy_map_ipv4(&source.address, header.ipv4->saddr);
		break;
	case CANOPY_IPV6:
		source.kind = KIND_IPV6;
		canopy_copy_ipv6(&source.address, &header.ipv6->saddr);
		if (is_neighbour_discovery(&cursor, header.ipv6))
			source.kind = KIND_NEIGHBOUR;
		else if (!is_always_whole(&source.address))
			keep_prefix(&source.address, set.ipv6_prefix);
		break;
	case CANOPY_MALFORMED:
		/* The headers go on in another buffer, where the stack finds them. */
		if (!cursor.cut || bpf_xdp_get_buff_len(ctx) <= ctx->data_end - ctx->data)
			goto exempt;
		break;
	case CANOPY_DEEP:
		break;
	default:
		goto exempt;
	}
	if (set.rate == 0 || take_token(&source, &set)) {
		canopy_count(&rl_totals, TOTAL_PASSED);
		return XDP_PASS;
	}
	canopy_count(&rl_totals, TOTAL_LIMITED);
	return XDP_DROP;

exempt:
	canopy_count(&rl_totals, TOTAL_EXEMPT);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
