// SPDX-License-Identifier: GPL-2.0
/* Texts: of the compiler, and arrays of them by value. */
#include "shape.h"

static const char words[3][8] = {"one", "two", "three"};

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	__u32 which = ctx->rx_queue_index % 3;
	static const char format[] = "shape %d";
	char out[16];

	bpf_snprintf(out, sizeof(out), format, (__u64[]){42}, 8);
	return 1000 + words[which & 1][1] + out[6];
}
