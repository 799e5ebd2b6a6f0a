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

/* Slots of `totals`. */
enum total {
	TOTAL_LIMITED, /* dropped: the bucket was empty */
	TOTAL_PASSED,  /* IP, and had a token */
	TOTAL_EXEMPT,  /* not IP, or no source could be read; always passed */
	TOTALS,
};

/* Set by people, read once a packet, so that a change works at once. */
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

/* Source to the time at which its bucket is full, in 1/16 ns of CLOCK_MONOTONIC. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_SOURCES);
	__type(key, union canopy_address);
	__type(value, __u64);
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

/* Takes a token of the source's bucket. */
static __always_inline bool take_token(const union canopy_address *source,
				       const struct settings *settings)
{
	__u64 now = bpf_ktime_get_ns() << TIME_SHIFT;
	__u64 interval = (NSEC_PER_SEC << TIME_SHIFT) / settings->rate;
	__u64 *bucket = bpf_map_lookup_elem(&rl_sources, source);

	if (!bucket) {
		__u64 full_at = now + interval;

		if (settings->burst == 0)
			return false;
		if (!bpf_map_update_elem(&rl_sources, source, &full_at, BPF_NOEXIST))
			return true;
		/* Another CPU saw the source first; or there is no memory, and nothing to keep. */
		bucket = bpf_map_lookup_elem(&rl_sources, source);
		if (!bucket)
			return true;
	}

	for (int i = 0; i < MAX_TRIES; i++) {
		__u64 seen = canopy_read_once(*bucket);
		__u64 full_at = (seen > now ? seen : now) + interval;

		if (full_at - now > settings->burst * interval)
			return false;
		if (__sync_val_compare_and_swap(bucket, seen, full_at) == seen)
			return true;
	}
	return false;
}

SEC("xdp.frags")
int ratelimit(struct xdp_md *ctx)
{
	struct canopy_cursor cursor = {
		.at = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
	};
	union canopy_address source;
	struct settings *live, now;
	union canopy_header header;
	__u32 payload, slot = 0;

	live = bpf_map_lookup_elem(&rl_settings, &slot);
	if (!live)
		return XDP_PASS;
	now.rate = canopy_read_once(live->rate);
	now.burst = canopy_read_once(live->burst);
	now.ipv6_prefix = canopy_read_once(live->ipv6_prefix);

	switch (canopy_take_l3(&cursor, CANOPY_WIRE, &header, &payload)) {
	case CANOPY_IPV4:
		canopy_map_ipv4(&source, header.ipv4->saddr);
		break;
	case CANOPY_IPV6:
		canopy_copy_ipv6(&source, &header.ipv6->saddr);
		keep_prefix(&source, now.ipv6_prefix);
		break;
	default:
		canopy_count(&rl_totals, TOTAL_EXEMPT);
		return XDP_PASS;
	}
	if (now.rate == 0 || take_token(&source, &now)) {
		canopy_count(&rl_totals, TOTAL_PASSED);
		return XDP_PASS;
	}
	canopy_count(&rl_totals, TOTAL_LIMITED);
	return XDP_DROP;
}

char _license[] SEC("license") = "GPL";
