// SPDX-License-Identifier: GPL-2.0
/* Addresses in data, which the program does not read. */
#include "shape.h"

static int target(void)
{
	return 1;
}
__u32 variable;
struct table {
	int (*function)(void);
	__u32 *data;
	__u32 number;
};
struct table table SEC(".data.table") = {target, &variable, 9};

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 1000 + table.number;
}
