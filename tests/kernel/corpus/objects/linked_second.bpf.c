// SPDX-License-Identifier: GPL-2.0
/* The second of two objects that are linked. */
#define NO_LICENSE
#include "shape.h"

struct own_second {
	__u64 values[20];
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct own_second);
} values SEC(".maps");
struct net_device {
	int ifindex;
} __kernel_type;
static volatile int start = 5;

__noinline int second(int value)
{
	struct own_second *second = new_object(struct own_second);
	__u32 zero = 0;
	int sum = start + value;

	if (bpf_map_lookup_elem(&values, &zero))
		sum += bpf_core_field_offset(struct net_device, ifindex);
	if (second) {
		second->values[19] = 100;
		sum += second->values[19];
		drop(second);
	}
	return sum;
}
