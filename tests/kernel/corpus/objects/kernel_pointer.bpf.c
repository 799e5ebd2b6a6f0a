// SPDX-License-Identifier: GPL-2.0
/* A pointer to an object of the kernel, kept by a map. */
#include "shape.h"

struct task_struct;
struct holder {
	struct task_struct __kernel_pointer *task;
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct holder);
} holders SEC(".maps");

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct holder *holder = bpf_map_lookup_elem(&holders, &zero);

	return holder && !holder->task ? XDP_PASS : XDP_DROP;
}
