// SPDX-License-Identifier: GPL-2.0
/*
 * Sections named as nobody else names them, each with functions at the same offsets, calling
 * functions of their own section, of another and of .text.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

volatile __u64 trace;

/* .text, offset 0 */
__attribute__((noinline)) int in_text(int value)
{
	trace = trace * 10 + 1;
	return value + 1;
}

/* offset 0 of a section of its own */
SEC("Helpers One")
__attribute__((noinline)) int in_first(int value)
{
	trace = trace * 10 + 2;
	return in_text(value) + 10;
}

/* offset 0 of another */
SEC("helpers-two/x.y")
__attribute__((noinline)) int in_second(int value)
{
	trace = trace * 10 + 3;
	return in_first(value) + 100;
}

SEC("my_own_section!")
int entry(struct xdp_md *ctx)
{
	trace = 0;
	/* 112 if every call went where it should */
	return in_second(1) == 112 ? XDP_PASS : XDP_ABORTED;
}

/* The same section, so not at offset 0. */
SEC("my_own_section!")
int second_entry(struct xdp_md *ctx)
{
	trace = 0;
	return in_first(1) == 12 ? XDP_TX : XDP_ABORTED;
}

char _license[] SEC("license") = "GPL";
