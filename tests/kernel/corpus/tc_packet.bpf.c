// SPDX-License-Identifier: GPL-2.0
/* Direct packet writes, and the packet loads of classic BPF: both need help from the kernel. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

unsigned long long load_byte(void *skb, unsigned long long offset) asm("llvm.bpf.load.byte");

SEC("tc")
int write(struct __sk_buff *skb)
{
	__u8 *data = (void *)(long)skb->data;

	if ((void *)(data + 14) > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	data[0] = 0x42;
	return TC_ACT_OK;
}

SEC("tc")
int read(struct __sk_buff *skb)
{
	return load_byte(skb, 0) == 0x42 ? TC_ACT_OK : TC_ACT_SHOT;
}

char _license[] SEC("license") = "GPL";
