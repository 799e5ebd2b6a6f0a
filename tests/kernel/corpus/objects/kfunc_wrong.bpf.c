// SPDX-License-Identifier: GPL-2.0
/* A function of the kernel with another prototype. */
#include "shape.h"

extern int bpf_dynptr_size(int first, int second, int third) __ksym;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return bpf_dynptr_size(1, 2, 3);
}
