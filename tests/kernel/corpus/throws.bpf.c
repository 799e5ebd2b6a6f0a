// SPDX-License-Identifier: GPL-2.0
/* Programs that end by an exception, from every depth. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern void bpf_throw(__u64 cookie) __ksym;
extern void bpf_throw___guarded(__u64 cookie) __ksym __weak;

const volatile _Bool never = 0;

#define LONG(ctx) ((ctx)->data_end - (ctx)->data > 100)

SEC("xdp")
int from_entry(struct xdp_md *ctx)
{
	if (LONG(ctx))
		bpf_throw(0);
	return XDP_PASS;
}

static __attribute__((noinline)) int throw_if_long(struct xdp_md *ctx)
{
	if (LONG(ctx))
		bpf_throw(1);
	return ctx->rx_queue_index;
}

SEC("xdp")
int from_static(struct xdp_md *ctx)
{
	return throw_if_long(ctx) ? XDP_DROP : XDP_PASS;
}

__attribute__((noinline)) int throw_globally(struct xdp_md *ctx)
{
	if (LONG(ctx))
		bpf_throw(2);
	return 0;
}

SEC("xdp")
int from_global(struct xdp_md *ctx)
{
	return throw_globally(ctx) ? XDP_DROP : XDP_PASS;
}

static int throw_in_callback(__u32 index, void *context)
{
	if (index == 3)
		bpf_throw(3);
	return 0;
}

SEC("xdp")
int from_callback(struct xdp_md *ctx)
{
	bpf_loop(5, throw_in_callback, 0, 0);
	return XDP_PASS;
}

/* As bpf_assert() of the kernel's selftests does it. */
SEC("xdp")
int from_assertion(struct xdp_md *ctx)
{
	__u64 length = ctx->data_end - ctx->data;

	asm volatile(
		"if %[length] < %[most] goto +2\n"
		"r1 = 0\n"
		"call bpf_throw\n"
		:
		: [length] "r"(length), [most] "i"(100)
		: "r0", "r1", "r2", "r3", "r4", "r5");
	return XDP_PASS;
}

SEC("xdp")
int from_another_declaration(struct xdp_md *ctx)
{
	if (LONG(ctx) && bpf_throw___guarded)
		bpf_throw___guarded(0);
	return XDP_PASS;
}

int thrower(struct xdp_md *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__array(values, int(struct xdp_md *));
} jumps SEC(".maps") = {
	.values = {[0] = (void *)&thrower},
};

SEC("xdp/thrower")
int thrower(struct xdp_md *ctx)
{
	if (LONG(ctx))
		bpf_throw(0);
	return XDP_PASS;
}

SEC("xdp")
int from_tail_call(struct xdp_md *ctx)
{
	bpf_tail_call(ctx, &jumps, 0);
	return XDP_ABORTED;
}

/* In the same object as the others, and without. */
SEC("xdp")
int throws_nothing(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
