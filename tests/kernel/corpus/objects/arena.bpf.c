// SPDX-License-Identifier: GPL-2.0
/* An arena, and a read of a page that is not there (by hand: older compilers know no arenas). */
#include "shape.h"

struct {
	__uint(type, 33 /* BPF_MAP_TYPE_ARENA */);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 4);
} arena SEC(".maps");

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	__u64 value;

	/* r1 = addr_space_cast(0x1000, 0, 1); the kernel reads 0 where there is no page. */
	asm volatile(
		"%[value] = %[arena];"
		"r1 = 0x1000;"
		".byte 0xbf, 0x11, 1, 0, 1, 0, 0, 0;"
		"%[value] = *(u64 *)(r1 + 0);"
		: [value] "=&r"(value)
		: [arena] "r"(&arena)
		: "r1");
	return value ? XDP_DROP : XDP_PASS;
}
