// SPDX-License-Identifier: GPL-2.0
/* A map for every kind of type, and variables in every data section. Never loaded. */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include <stdbool.h>

#define MAP(name, k, v)                          \
	struct {                                 \
		__uint(type, BPF_MAP_TYPE_HASH); \
		__uint(max_entries, 8);          \
		__type(key, k);                  \
		__type(value, v);                \
	} name SEC(".maps")

enum colour { RED, GREEN = 5, BLUE };
enum sign { MINUS = -1, NONE, PLUS };
enum __attribute__((packed)) small { LOW = 1, HIGH = 200 };
enum wide { SMALL_ONE = 1, LARGE_ONE = 0x123456789abcdefULL };

typedef __be16 port_t;
typedef const volatile __u32 hidden_t;
typedef __s32 matrix_t[2][3];

struct scalars {
	__u8 u8;
	__s8 s8;
	__u16 u16;
	__s16 s16;
	__u32 u32;
	__s32 s32;
	__u64 u64;
	__s64 s64;
	__uint128_t u128;
	__int128_t s128;
	bool yes;
	bool odd;
	char letter;
	char bell;
	enum colour colour;
	enum colour unknown;
	enum small small;
	enum wide wide;
	hidden_t hidden;
	void *pointer;
};

struct network {
	port_t port;
	__be32 address;
	__be64 both;
	__be16 list[2];
};

struct text {
	char name[8];
	char full[4];
	char not_text[4];
	char empty[3];
	__u8 mac[6];
};

struct fields {
	__u32 three : 3;
	__s32 signed_five : 5;
	bool flag : 1;
	enum colour colour : 4;
	__u64 wide : 40;
	__u32 after;
};

struct nested {
	matrix_t matrix;
	struct {
		__u16 inner;
		union {
			__u32 word;
			__u8 bytes[4];
		};
	};
	union {
		__u64 number;
		struct {
			__u32 low;
			__u32 high;
		} halves;
	} view;
	struct network net;
};

struct floats {
	float narrow;
	double wide;
};

struct kernels {
	struct bpf_spin_lock lock;
	__u32 count;
	struct bpf_timer timer;
};

struct trie_key {
	__u32 prefixlen;
	__u8 address[4];
};

MAP(scalars, __u32, struct scalars);
MAP(networks, port_t, struct network);
MAP(texts, char[8], struct text);
MAP(bits, __u64, struct fields);
MAP(nests, struct network, struct nested);
MAP(fractions, __u32, struct floats);
MAP(locked, __u32, struct kernels);

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 8);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct trie_key);
	__type(value, __u64);
} trie SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__uint(key_size, 2);
	__uint(value_size, 3);
} untyped SEC(".maps");

const volatile __u16 limit = 80;
volatile enum sign direction = PLUS;
__u64 counted;
static volatile bool ready = true;
struct network SEC(".data.custom") elsewhere = {.port = 1};

SEC("xdp")
int all(struct xdp_md *ctx)
{
	__u32 key = limit;
	void *value = bpf_map_lookup_elem(&scalars, &key);

	if (value && ready && direction == PLUS && elsewhere.port)
		counted++;
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
