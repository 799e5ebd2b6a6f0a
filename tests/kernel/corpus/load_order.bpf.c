// SPDX-License-Identifier: GPL-2.0
/*
 * Programs of the shapes that other projects write: loops with several ways out, long comparisons,
 * header parsers, flags gathered on the way. Each loads alone in moments.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} known SEC(".maps");

#define PACKET(ctx)                             \
	__u8 *data = (void *)(long)(ctx)->data; \
	__u8 *end = (void *)(long)(ctx)->data_end

/* A loop over the payload with a way out in each round. */
SEC("xdp")
int find_byte(struct xdp_md *ctx)
{
	PACKET(ctx);

#pragma clang loop unroll(disable)
	for (int i = 0; i < 600; i++) {
		if (data + i + 1 > end)
			return XDP_PASS;
		if (data[i] == 0xfe)
			return XDP_DROP;
		if (data[i] == 0xfd)
			return XDP_TX;
	}
	return XDP_PASS;
}

/* A state machine over the payload. */
SEC("xdp")
int match_text(struct xdp_md *ctx)
{
	PACKET(ctx);
	__u32 state = 0;

#pragma clang loop unroll(disable)
	for (int i = 0; i < 120; i++) {
		if (data + i + 1 > end)
			break;
		switch (state) {
		case 0:
			state = data[i] == 'G' ? 1 : 0;
			break;
		case 1:
			state = data[i] == 'E' ? 2 : 0;
			break;
		case 2:
			state = data[i] == 'T' ? 3 : 0;
			break;
		case 3:
			state = data[i] == ' ' ? 4 : 0;
			break;
		default:
			return XDP_DROP;
		}
	}
	return XDP_PASS;
}

#ifndef OPTIONS
#define OPTIONS 6
#endif

/* TCP options: a cursor that moves by what it reads. */
SEC("xdp")
int tcp_options(struct xdp_md *ctx)
{
	PACKET(ctx);
	__u32 at = 14, seen = 0;

#pragma clang loop unroll(disable)
	for (int i = 0; i < OPTIONS; i++) {
		__u8 *option = data + (at & 0xff);

		if (option + 2 > end)
			break;
		if (option[0] == 0)
			break;
		if (option[0] == 1) {
			at++;
			continue;
		}
		if (option[0] == 2)
			seen |= 1;
		if (option[0] == 3)
			seen |= 2;
		if (option[0] == 8)
			seen |= 4;
		if (option[1] < 2)
			return XDP_PASS;
		at += option[1];
	}
	return seen == 7 ? XDP_DROP : XDP_PASS;
}

/* Flags that each may be there or not: every combination is a state of its own. */
SEC("xdp")
int gather_flags(struct xdp_md *ctx)
{
	PACKET(ctx);
	__u64 flags = 0;

	if (data + 32 > end)
		return XDP_PASS;
#pragma clang loop unroll(full)
	for (int i = 0; i < 11; i++) {
		if (data[i + 14] > 128)
			flags += 1ULL << (i * 2);
		barrier_var(flags);
	}
	if (flags == 0x155555)
		return XDP_DROP;
	if (bpf_map_lookup_elem(&known, &flags))
		return XDP_DROP;
	return XDP_PASS;
}

/* A long comparison, each with its own way out. */
#define IS(n)                  \
	if (port == (n)*7 + 1) \
		return XDP_PASS;
#define IS4(n)  IS(n) IS(n + 1) IS(n + 2) IS(n + 3)
#define IS16(n) IS4(n) IS4(n + 4) IS4(n + 8) IS4(n + 12)
#define IS64(n) IS16(n) IS16(n + 16) IS16(n + 32) IS16(n + 48)

SEC("xdp")
int long_list(struct xdp_md *ctx)
{
	__u32 port = ctx->rx_queue_index;

	barrier_var(port);
	IS64(0) IS64(64) IS64(128) return port == 77777 ? XDP_DROP : XDP_PASS;
}

/* Looks something up in each round. */
SEC("xdp")
int lookups(struct xdp_md *ctx)
{
	PACKET(ctx);
	__u64 sum = 0;

#pragma clang loop unroll(disable)
	for (int i = 0; i < 200; i++) {
		__u64 *value;
		__u32 key;

		if (data + i + 1 > end)
			break;
		key = data[i];
		value = bpf_map_lookup_elem(&known, &key);
		if (!value)
			continue;
		sum += *value;
		if (sum == 12345)
			return XDP_ABORTED;
	}
	return sum == 1 ? XDP_DROP : XDP_PASS;
}

/* VLAN tags, then IPv6 extension headers. */
SEC("xdp")
int headers(struct xdp_md *ctx)
{
	PACKET(ctx);
	__u32 at = 14;
	__u16 type;
	__u8 next;

	if (data + 14 > end)
		return XDP_PASS;
	type = data[12] << 8 | data[13];
#pragma clang loop unroll(full)
	for (int i = 0; i < 4; i++) {
		if (type != 0x8100 && type != 0x88a8)
			break;
		if (data + at + 4 > end)
			return XDP_PASS;
		type = data[at + 2] << 8 | data[at + 3];
		at += 4;
	}
	if (type != 0x86dd || data + at + 40 > end)
		return XDP_PASS;
	next = data[at + 6];
	at += 40;
#pragma clang loop unroll(disable)
	for (int i = 0; i < 8; i++) {
		if (next != 0 && next != 43 && next != 60)
			break;
		__u8 *header = data + (at & 0x1ff);

		if (header + 8 > end)
			return XDP_PASS;
		next = header[0];
		at += (header[1] + 1) * 8;
	}
	return next == 17 ? XDP_DROP : XDP_PASS;
}

/* A checksum: a plain loop. */
SEC("xdp")
int checksum(struct xdp_md *ctx)
{
	PACKET(ctx);
	__u32 sum = 0;

#pragma clang loop unroll(disable)
	for (int i = 0; i < 1000; i++) {
		if (data + i + 1 > end)
			break;
		sum += data[i];
	}
	return (sum & 0xffff) == 0xbeef ? XDP_DROP : XDP_PASS;
}

/* Two loops in one another. */
SEC("xdp")
int nested(struct xdp_md *ctx)
{
	PACKET(ctx);

#pragma clang loop unroll(disable)
	for (int i = 0; i < 40; i++) {
		__u32 same = 0;

#pragma clang loop unroll(disable)
		for (int j = 0; j < 8; j++) {
			__u8 *at = data + i + j;

			barrier_var(at);
			if (at + 1 > end)
				return XDP_PASS;
			if (*at == 'a' + j)
				same++;
		}
		if (same == 8)
			return XDP_DROP;
	}
	return XDP_PASS;
}

/* Small and straight, as most are. */
SEC("xdp")
int small(struct xdp_md *ctx)
{
	PACKET(ctx);

	if (data + 14 > end)
		return XDP_PASS;
	return data[12] == 0xff ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";
