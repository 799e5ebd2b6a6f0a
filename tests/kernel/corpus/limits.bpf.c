// SPDX-License-Identifier: GPL-2.0
/* Programs that load alone and are too much for a chain. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* 512 bytes are all there is. */
SEC("xdp")
int much_stack(struct xdp_md *ctx)
{
	volatile __u8 room[504];

	room[503] = 0;
	/* An index the compiler does not know keeps the array in one piece. */
	room[ctx->rx_queue_index & 255] = 1;
	return room[503] ? XDP_DROP : XDP_PASS;
}

#define LEVEL(name, next)                                              \
	static __attribute__((noinline)) int name(volatile int *value) \
	{                                                              \
		(*value)++;                                            \
		return next;                                           \
	}

LEVEL(level8, *value)
LEVEL(level7, level8(value) + *value)
LEVEL(level6, level7(value) + *value)
LEVEL(level5, level6(value) + *value)
LEVEL(level4, level5(value) + *value)
LEVEL(level3, level4(value) + *value)
LEVEL(level2, level3(value) + *value)

/* Eight frames are all there are. */
SEC("xdp")
int deep(struct xdp_md *ctx)
{
	volatile int value = 0;

	return level2(&value) ? XDP_PASS : XDP_DROP;
}

/* A loop the verifier walks to the end: more than half of what it walks for one program. */
SEC("xdp")
int long_walk(struct xdp_md *ctx)
{
	volatile __u32 sum = 0;

	for (int i = 0; i < 70000; i++) {
		sum += i;
		sum ^= i;
	}
	return sum == 1 ? XDP_DROP : XDP_PASS;
}

#define MAP(name)                                 \
	struct {                                  \
		__uint(type, BPF_MAP_TYPE_ARRAY); \
		__uint(max_entries, 1);           \
		__type(key, __u32);               \
		__type(value, __u64);             \
	} name SEC(".maps")

MAP(one);
MAP(two);
const volatile __u64 constant = 5;

/* Three maps: two and a data section. */
SEC("xdp")
int three_maps(struct xdp_md *ctx)
{
	__u32 key = 0;
	__u64 *a = bpf_map_lookup_elem(&one, &key);
	__u64 *b = bpf_map_lookup_elem(&two, &key);

	if (a && b)
		*a = *b + constant;
	return XDP_PASS;
}

/* One map and a data section that says something of its own. */
SEC("xdp")
int two_maps(struct xdp_md *ctx)
{
	__u32 key = 0;
	__u64 *a = bpf_map_lookup_elem(&one, &key);

	if (a)
		*a += constant;
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
