// SPDX-License-Identifier: GPL-2.0
/* Maps in the old "maps" section, no type information needed. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct old_map_def {
	unsigned int type;
	unsigned int key_size;
	unsigned int value_size;
	unsigned int max_entries;
	unsigned int map_flags;
};

struct old_map_def SEC("maps") counters = {
	.type = BPF_MAP_TYPE_HASH,
	.key_size = sizeof(__u32),
	.value_size = sizeof(__u64),
	.max_entries = 8,
};

struct old_map_def SEC("maps") totals = {
	.type = BPF_MAP_TYPE_ARRAY,
	.key_size = sizeof(__u32),
	.value_size = sizeof(__u64),
	.max_entries = 1,
};

static __attribute__((noinline)) int add(__u32 key)
{
	__u64 one = 1, *value = bpf_map_lookup_elem(&counters, &key);

	if (value)
		__sync_fetch_and_add(value, 1);
	else
		bpf_map_update_elem(&counters, &key, &one, BPF_ANY);
	return 0;
}

SEC("xdp_old")
int old(struct xdp_md *ctx)
{
	__u32 key = 0;
	__u64 *value = bpf_map_lookup_elem(&totals, &key);

	if (value)
		__sync_fetch_and_add(value, 1);
	add(5);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
