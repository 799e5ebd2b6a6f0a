// SPDX-License-Identifier: GPL-2.0
/* What libbpf fills in from the kernel's version and configuration. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern int LINUX_KERNEL_VERSION __kconfig;
extern int CONFIG_CANOPY_NO_SUCH_OPTION __kconfig __weak;

__u64 version;

SEC("xdp")
int kconfig(struct xdp_md *ctx)
{
	version = LINUX_KERNEL_VERSION;
	return CONFIG_CANOPY_NO_SUCH_OPTION ? XDP_ABORTED : XDP_PASS;
}

char _license[] SEC("license") = "GPL";
