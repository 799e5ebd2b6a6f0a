/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Blocks and allows packets by their source address.
 *
 * The longest prefix that matches decides, of both lists together; the same prefix in both is
 * allowed. Only addresses are looked at, so every fragment of a packet meets the same rule.
 *
 * Whole addresses, the longest prefixes there are, are in hash maps, which are found in less time
 * than in the tries that hold the rest.
 */
#include <canopy/bpf.h>
#include <canopy/packet.h>
#include <canopy/rules.h>

#define MAX_RULES 4096

/* Slots of `totals`. */
enum total {
	TOTAL_BLOCKED,   /* dropped by a rule of `blocked` */
	TOTAL_ALLOWED,   /* passed by a rule of `allowed` */
	TOTAL_UNLISTED,  /* IP, and no rule matched */
	TOTAL_MALFORMED, /* cut short, contradicting itself, or with too many tags */
	TOTAL_OTHER,     /* not IP; always passed */
	TOTALS,
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_RULES);
	__type(key, struct canopy_lpm_v4);
	__type(value, struct canopy_rule);
} fw_blocked4 SEC(".maps"), fw_allowed4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_RULES);
	__type(key, struct canopy_lpm_v6);
	__type(value, struct canopy_rule);
} fw_blocked6 SEC(".maps"), fw_allowed6 SEC(".maps");

/* Whole addresses: prefixes of 32 and of 128 bits. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_RULES);
	__type(key, __be32);
	__type(value, struct canopy_rule);
} fw_block_ip4 SEC(".maps"), fw_allow_ip4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_RULES);
	__type(key, struct canopy_ip6);
	__type(value, struct canopy_rule);
} fw_block_ip6 SEC(".maps"), fw_allow_ip6 SEC(".maps");

/* Packets by rule: slot i belongs to item i of the list. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_RULES);
	__type(key, __u32);
	__type(value, __u64);
} fw_blocked_hits SEC(".maps"), fw_allowed_hits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TOTALS);
	__type(key, __u32);
	__type(value, __u64);
} fw_totals SEC(".maps");

/* Which maps of each list have entries. */
const volatile __u8 blocked_filled = 0xff;
const volatile __u8 allowed_filled = 0xff;
/* Drop IP packets that no rule matches, and those that no rule can be asked about. */
const volatile bool drop_unlisted = false;
/* Drop packets that are cut short or contradict themselves. */
const volatile bool drop_malformed = false;

/* The rules with the longest prefixes that match; of a hash map's rule none of a trie is asked. */
struct match {
	const struct canopy_rule *blocked;
	const struct canopy_rule *allowed;
};

static __always_inline int malformed(void)
{
	canopy_count(&fw_totals, TOTAL_MALFORMED);
	return drop_malformed || drop_unlisted ? XDP_DROP : XDP_PASS;
}

/*
 * Whether the packet states to be longer than the frame is. Where the frame has several buffers the
 * first is compared before anybody asks for all of them.
 */
static __always_inline bool is_truncated(struct xdp_md *ctx, const struct canopy_cursor *cursor,
					 __u32 payload)
{
	__u64 left = cursor->end - cursor->at;

	if (canopy_likely(!canopy_reaches_beyond(payload, left)))
		return false;
	left += bpf_xdp_get_buff_len(ctx) - (ctx->data_end - ctx->data);
	return canopy_reaches_beyond(payload, left);
}

static __always_inline int judge(const struct match *match, bool truncated)
{
	const struct canopy_rule *blocked = match->blocked, *allowed = match->allowed;
	bool passes = allowed && (!blocked || allowed->prefix_len >= blocked->prefix_len);

	if (blocked && !passes) {
		canopy_count(&fw_blocked_hits, blocked->index);
		canopy_count(&fw_totals, TOTAL_BLOCKED);
		return XDP_DROP;
	}
	if (canopy_unlikely(truncated))
		return malformed();
	if (passes) {
		canopy_count(&fw_allowed_hits, allowed->index);
		canopy_count(&fw_totals, TOTAL_ALLOWED);
		return XDP_PASS;
	}
	canopy_count(&fw_totals, TOTAL_UNLISTED);
	return drop_unlisted ? XDP_DROP : XDP_PASS;
}

static __always_inline struct match match_ipv4(__be32 source)
{
	struct canopy_lpm_v4 key = {.prefix_len = 32};
	struct match match = {};

	if (allowed_filled & CANOPY_FILLED_HASH_V4) {
		match.allowed = bpf_map_lookup_elem(&fw_allow_ip4, &source);
		if (match.allowed)
			return match;
	}
	if (blocked_filled & CANOPY_FILLED_HASH_V4) {
		match.blocked = bpf_map_lookup_elem(&fw_block_ip4, &source);
		if (match.blocked)
			return match;
	}
	__builtin_memcpy(key.address, &source, sizeof(key.address));
	if (blocked_filled & CANOPY_FILLED_LPM_V4)
		match.blocked = bpf_map_lookup_elem(&fw_blocked4, &key);
	if (allowed_filled & CANOPY_FILLED_LPM_V4)
		match.allowed = bpf_map_lookup_elem(&fw_allowed4, &key);
	return match;
}

static __always_inline struct match match_ipv6(const struct in6_addr *source)
{
	struct canopy_lpm_v6 key = {.prefix_len = 128};
	struct match match = {};

	__builtin_memcpy(key.address, source, sizeof(key.address));
	if (allowed_filled & CANOPY_FILLED_HASH_V6) {
		match.allowed = bpf_map_lookup_elem(&fw_allow_ip6, key.address);
		if (match.allowed)
			return match;
	}
	if (blocked_filled & CANOPY_FILLED_HASH_V6) {
		match.blocked = bpf_map_lookup_elem(&fw_block_ip6, key.address);
		if (match.blocked)
			return match;
	}
	if (blocked_filled & CANOPY_FILLED_LPM_V6)
		match.blocked = bpf_map_lookup_elem(&fw_blocked6, &key);
	if (allowed_filled & CANOPY_FILLED_LPM_V6)
		match.allowed = bpf_map_lookup_elem(&fw_allowed6, &key);
	return match;
}

SEC("xdp.frags")
int firewall(struct xdp_md *ctx)
{
	struct canopy_cursor cursor = {
		.at = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
	};
	union canopy_header header = {};
	struct match match;
	__u32 payload = 0;

	switch (canopy_take_l3(&cursor, CANOPY_WIRE, &header, &payload)) {
	case CANOPY_IPV4:
		match = match_ipv4(header.ipv4->saddr);
		return judge(&match, is_truncated(ctx, &cursor, payload));
	case CANOPY_IPV6:
		match = match_ipv6(&header.ipv6->saddr);
		return judge(&match, is_truncated(ctx, &cursor, payload));
	case CANOPY_MALFORMED:
		/* The headers go on in another buffer: they cannot be read, and the stack can. */
		if (cursor.cut && bpf_xdp_get_buff_len(ctx) > ctx->data_end - ctx->data)
			break;
		return malformed();
	case CANOPY_DEEP:
		break;
	default:
		canopy_count(&fw_totals, TOTAL_OTHER);
		return XDP_PASS;
	}
	/* Whom it is from is not known, and the stack would find out and take it. */
	canopy_count(&fw_totals, TOTAL_MALFORMED);
	return XDP_DROP;
}

char _license[] SEC("license") = "GPL";
