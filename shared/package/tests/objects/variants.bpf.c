/* SPDX-License-Identifier: MIT */
/* One program, compiled to objects that are the same to a manifest, and to others that are not. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#ifdef WIDE
typedef __u64 number;
#else
typedef __u32 number;
#endif

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, number);
} seen SEC(".maps");

#ifdef RING
/* The manifest does not speak of it: it may be in one of the objects only. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");
#endif

#ifndef SETTLED
const volatile number most = 1;
#endif

#ifdef SKB
SEC("tc")
int limit(struct __sk_buff *ctx)
#else
SEC("xdp")
int limit(struct xdp_md *ctx)
#endif
{
	__u32 slot = 0;
	number *count = bpf_map_lookup_elem(&seen, &slot);

#ifdef RING
	bpf_ringbuf_output(&events, &slot, sizeof(slot), 0);
#endif
#ifdef SETTLED
	return count ? 2 : 1;
#else
	return count && *count > most ? 1 : 2;
#endif
}

char _license[] SEC("license") = "GPL";
