// SPDX-License-Identifier: GPL-2.0
/* Variables in an arena (by hand: older compilers know no arenas). */
#include "shape.h"

struct {
	__uint(type, 33 /* BPF_MAP_TYPE_ARENA */);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 4);
} arena SEC(".maps");

__u64 first SEC(".addr_space.1") = 5;
__u64 second SEC(".addr_space.1") = 7;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	__u64 value, arenas;

	/* r1 = addr_space_cast(&second, 0, 1) */
	asm volatile(
		"%[arenas] = %[arena];"
		"r1 = %[variable];"
		".byte 0xbf, 0x11, 1, 0, 1, 0, 0, 0;"
		"%[value] = *(u64 *)(r1 + 0);"
		: [value] "=&r"(value), [arenas] "=&r"(arenas)
		: [arena] "r"(&arena), [variable] "r"(&second)
		: "r1");
	return value == 7 ? XDP_PASS : XDP_DROP;
}
