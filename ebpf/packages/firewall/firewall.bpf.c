/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Blocks and allows packets by their source address.
 *
 * The longest prefix that matches decides, of both lists together; the same prefix in both is
 * allowed. Only addresses are looked at, so every fragment of a packet meets the same rule.
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
	TOTAL_MALFORMED, /* cut short, or contradicting itself */
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

/* Drop IP packets that no rule matches. */
const volatile bool drop_unlisted = false;
/* Drop packets that are cut short or contradict themselves. */
const volatile bool drop_malformed = false;

static __always_inline int judge(const struct canopy_rule *blocked,
				 const struct canopy_rule *allowed)
{
	if (allowed && (!blocked || allowed->prefix_len >= blocked->prefix_len)) {
		canopy_count(&fw_allowed_hits, allowed->index);
		canopy_count(&fw_totals, TOTAL_ALLOWED);
		return XDP_PASS;
	}
	if (blocked) {
		canopy_count(&fw_blocked_hits, blocked->index);
		canopy_count(&fw_totals, TOTAL_BLOCKED);
		return XDP_DROP;
	}
	canopy_count(&fw_totals, TOTAL_UNLISTED);
	return drop_unlisted ? XDP_DROP : XDP_PASS;
}

static __always_inline int judge_ipv4(const struct iphdr *ip)
{
	struct canopy_lpm_v4 key = {.prefix_len = 32};

	__builtin_memcpy(key.address, &ip->saddr, sizeof(key.address));
	return judge(bpf_map_lookup_elem(&fw_blocked4, &key),
		     bpf_map_lookup_elem(&fw_allowed4, &key));
}

static __always_inline int judge_ipv6(const struct ipv6hdr *ip)
{
	struct canopy_lpm_v6 key = {.prefix_len = 128};

	__builtin_memcpy(key.address, &ip->saddr, sizeof(key.address));
	return judge(bpf_map_lookup_elem(&fw_blocked6, &key),
		     bpf_map_lookup_elem(&fw_allowed6, &key));
}

SEC("xdp.frags")
int firewall(struct xdp_md *ctx)
{
	struct canopy_cursor cursor = {
		.at = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
	};
	union canopy_header header;
	__u32 payload;

	switch (canopy_take_l3(&cursor, CANOPY_WIRE, &header, &payload)) {
	case CANOPY_IPV4:
		return judge_ipv4(header.ipv4);
	case CANOPY_IPV6:
		return judge_ipv6(header.ipv6);
	case CANOPY_MALFORMED:
		canopy_count(&fw_totals, TOTAL_MALFORMED);
		return drop_malformed ? XDP_DROP : XDP_PASS;
	default:
		canopy_count(&fw_totals, TOTAL_OTHER);
		return XDP_PASS;
	}
}

char _license[] SEC("license") = "GPL";
