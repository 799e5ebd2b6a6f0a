// SPDX-License-Identifier: GPL-2.0
/* A variable of the kernel by its type. */
#include "shape.h"

struct rq {
	unsigned int cpu;
} __kernel_type;
extern const struct rq runqueues __ksym;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return bpf_per_cpu_ptr(&runqueues, 0) ? XDP_PASS : XDP_DROP;
}
