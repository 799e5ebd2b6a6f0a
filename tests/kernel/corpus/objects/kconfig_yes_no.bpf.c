// SPDX-License-Identifier: GPL-2.0
/* Options that are yes or no, as bool, char and tristate. */
#include "shape.h"

enum libbpf_tristate___no;
extern bool CONFIG_BPF_SYSCALL __kconfig;
extern char CONFIG_BPF_JIT __kconfig __weak;
extern enum libbpf_tristate CONFIG_NET __kconfig __weak;
extern enum libbpf_tristate CONFIG_CANOPY_NO_SUCH_OPTION __kconfig __weak;

SEC("xdp")
int shape(struct xdp_md *ctx)
{
	return 1000 + CONFIG_BPF_SYSCALL + CONFIG_BPF_JIT * 2 + CONFIG_NET * 1000 +
	       CONFIG_CANOPY_NO_SUCH_OPTION * 10000;
}
