// SPDX-License-Identifier: GPL-2.0
/* Types of functions, by typedef. */
#include "shape.h"

struct xdp_buff;
typedef __u64 (*bpf_callback_t)(__u64, __u64, __u64, __u64, __u64);
typedef int (*bpf_func_t___wrong)(int);
typedef unsigned long long (*canopy_none_t)(int);
typedef __u64 (*btf_bpf_ringbuf_output)(int, void *, __u64, __u64);

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 1000 + bpf_core_type_exists(bpf_callback_t) * 2 +
	       bpf_core_type_exists(bpf_func_t___wrong) * 8 + bpf_core_type_exists(canopy_none_t) +
	       bpf_core_type_exists(btf_bpf_ringbuf_output) * 4;
}
