/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The layout of a `prefixes` setting: keys and values of the two LPM tries that Canopy fills from
 * the list a person wrote (canopy_package::bind), and of the two hash maps that take the whole
 * addresses of the list, where the manifest binds it to some.
 */
#ifndef CANOPY_RULES_H
#define CANOPY_RULES_H

#include <canopy/bpf.h>

/* Key of an IPv4 trie. */
struct canopy_lpm_v4 {
	__u32 prefix_len; /* bits, 0..=32 */
	__u8 address[4];  /* network order */
};
CANOPY_ASSERT_SIZE(struct canopy_lpm_v4, 8);

/* Key of an IPv6 trie. */
struct canopy_lpm_v6 {
	__u32 prefix_len; /* bits, 0..=128 */
	__u8 address[16]; /* network order */
};
CANOPY_ASSERT_SIZE(struct canopy_lpm_v6, 20);

/* Key of the hash map of whole IPv6 addresses; that of whole IPv4 addresses is a __be32. */
struct canopy_ip6 {
	__u8 address[16]; /* network order */
};
CANOPY_ASSERT_SIZE(struct canopy_ip6, 16);

/*
 * Which of a list's maps have entries, in the variable that the manifest names as `filled`. It is a
 * constant when the program is loaded, so that the kernel takes out lookups in maps that are empty.
 */
#define CANOPY_FILLED_LPM_V4  1
#define CANOPY_FILLED_LPM_V6  2
#define CANOPY_FILLED_HASH_V4 4
#define CANOPY_FILLED_HASH_V6 8

/* Value of all. */
struct canopy_rule {
	__u32 index;      /* position in the list, from 0 */
	__u32 prefix_len; /* bits: a lookup does not say how long the prefix that matched was */
};
CANOPY_ASSERT_SIZE(struct canopy_rule, 8);

#endif
