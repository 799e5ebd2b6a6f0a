// SPDX-License-Identifier: GPL-2.0
/* Reads what only the device's driver knows: the kernel takes it for one device. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern int bpf_xdp_metadata_rx_timestamp(const struct xdp_md *ctx, __u64 *timestamp) __ksym;

SEC("xdp")
int device_bound(struct xdp_md *ctx)
{
	__u64 when = 0;

	bpf_xdp_metadata_rx_timestamp(ctx, &when);
	return when ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";
