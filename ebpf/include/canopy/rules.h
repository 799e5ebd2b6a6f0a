/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The layout of a `prefixes` setting: keys and values of the two LPM tries that Canopy fills from
 * the list a person wrote (canopy_package::bind).
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

/* Value of both. */
struct canopy_rule {
	__u32 index;      /* position in the list, from 0 */
	__u32 prefix_len; /* bits: a lookup does not say how long the prefix that matched was */
};
CANOPY_ASSERT_SIZE(struct canopy_rule, 8);

#endif
