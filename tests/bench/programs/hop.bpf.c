/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One hop of a chain, in each form that is measured. Options of the compiler choose:
 *
 * HOOK_TC      a TC program instead of an XDP one
 * PARSING      reads the packet down to its ports and compares one, instead of doing nothing
 * WRAPPER      a program that knows nothing of chains, called by a wrapper that counts and goes on
 *              to the next hop by tail call
 * COOPERATIVE  a program that counts and goes on to the next hop itself
 *
 * With neither of the last two it is a plain program, as it is fused or run alone. The forms with
 * tail calls count like the fused chain: one increment a packet, at the hop where its way ends.
 */
#include <canopy/bpf.h>
#include <canopy/packet.h>

/* Cells a hop has: one for each verdict from 0 to 31, and one for the rest. */
#define CELLS    33
#define MAX_HOPS 64

#ifdef HOOK_TC
#define SECTION       "tc"
#define WHERE         CANOPY_STACK
#define VERDICT_PASS  0  /* TC_ACT_OK */
#define VERDICT_DROP  2  /* TC_ACT_SHOT */
#define FIRST_VERDICT -1 /* TC_ACT_UNSPEC */
/* Go on after TC_ACT_UNSPEC, TC_ACT_OK and TC_ACT_PIPE, as a fused chain does. */
#define PROCEED_ON 0x13U
typedef struct __sk_buff context;
#else
#define SECTION       "xdp"
#define WHERE         CANOPY_WIRE
#define VERDICT_PASS  XDP_PASS
#define VERDICT_DROP  XDP_DROP
#define FIRST_VERDICT 0
typedef struct xdp_md context;
#endif

/*
 * The hop's position in its chain: a constant that the loader of the bench puts into the
 * instruction, so that each hop is a program of its own and every tail call a direct one.
 */
static __always_inline __u32 position(void)
{
	__u64 value;

	asm volatile("%0 = 0x706f736974696f6e ll" : "=r"(value));
	return value;
}

#ifdef PARSING
static __always_inline int body(context *ctx)
{
	struct canopy_tuple tuple;

	canopy_parse((void *)(long)ctx->data, (void *)(long)ctx->data_end, WHERE, &tuple);
	if (tuple.ports && bpf_ntohs(tuple.destination_port) == 9000 + position())
		return VERDICT_DROP;
	return VERDICT_PASS;
}
#else
static __always_inline int body(context *ctx __attribute__((unused)))
{
	position();
	return VERDICT_PASS;
}
#endif

#if defined(WRAPPER) || defined(COOPERATIVE)
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, MAX_HOPS);
	__type(key, __u32);
	__type(value, __u32);
} hops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_HOPS *CELLS);
	__type(key, __u32);
	__type(value, __u64);
} cells SEC(".maps");

static __always_inline bool proceeds(int verdict)
{
#ifdef HOOK_TC
	__u32 slot = verdict - FIRST_VERDICT;

	/* The usual verdict first, as the fused chain has it. */
	if (canopy_likely(verdict == VERDICT_PASS))
		return true;
	return slot < 32 && (PROCEED_ON >> slot) & 1;
#else
	return verdict == VERDICT_PASS;
#endif
}

/* Goes on to the next hop; where there is none, or the way ends here, counts the verdict. */
static __always_inline int go_on(context *ctx, int verdict)
{
	__u32 slot = verdict - FIRST_VERDICT;

	if (proceeds(verdict))
		bpf_tail_call(ctx, &hops, position() + 1);
	canopy_count(&cells, position() * CELLS + (slot < CELLS ? slot : CELLS - 1));
	return verdict;
}
#endif

#if defined(WRAPPER)
/* Weak: the compiler must not look inside and conclude what it returns. */
SEC(SECTION)
__attribute__((weak, noinline)) int program(context *ctx)
{
	return body(ctx);
}

SEC(SECTION)
int hop(context *ctx)
{
	return go_on(ctx, program(ctx));
}
#elif defined(COOPERATIVE)
SEC(SECTION)
int hop(context *ctx)
{
	return go_on(ctx, body(ctx));
}
#else
SEC(SECTION)
int hop(context *ctx)
{
	return body(ctx);
}
#endif

char _license[] SEC("license") = "GPL";
