// SPDX-License-Identifier: GPL-2.0
/* Global functions, static ones, a callback of bpf_loop, and stack in each. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

volatile __u64 result;

static __attribute__((noinline)) __u64 squares(const __u8 *numbers, int count)
{
	__u64 sum = 0;

	for (int i = 0; i < count && i < 16; i++)
		sum += (__u64)numbers[i] * numbers[i];
	return sum;
}

__attribute__((noinline)) int global_sum(int seed)
{
	__u8 numbers[16];

	for (int i = 0; i < 16; i++)
		numbers[i] = seed + i;
	return squares(numbers, 16);
}

static long step(__u32 index, void *context)
{
	*(__u64 *)context += index;
	return 0;
}

SEC("xdp")
int functions(struct xdp_md *ctx)
{
	__u64 sum = 0;

	bpf_loop(10, step, &sum, 0);
	result = sum + global_sum(0);
	/* 0 + ... + 9 and 0 + 1 + 4 + ... + 225 */
	return result == 45 + 1240 ? XDP_PASS : XDP_ABORTED;
}

char _license[] SEC("license") = "GPL";
