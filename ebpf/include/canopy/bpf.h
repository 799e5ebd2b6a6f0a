/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What every program of Canopy starts from: the kernel's types, libbpf's helpers, and the few
 * words the headers of clang 14's day do not have.
 */
#ifndef CANOPY_BPF_H
#define CANOPY_BPF_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#define CANOPY_ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

/* A shared struct has no hole that the Rust side would have to guess. */
#define CANOPY_ASSERT_SIZE(type, bytes) \
	_Static_assert(sizeof(type) == (bytes), #type " is not " #bytes " bytes long")

#define canopy_likely(x)   __builtin_expect(!!(x), 1)
#define canopy_unlikely(x) __builtin_expect(!!(x), 0)

/*
 * Read once, at this place: a value that another CPU, or user space, may change at any time and
 * that must not be read a second time.
 */
#define canopy_read_once(x) (*(const volatile typeof(x) *)&(x))

/* Keeps the compiler from knowing what is in `x`, so that it emits what is written. */
#define canopy_opaque(x) asm volatile("" : "+r"(x))

/*
 * Adds to a counter in a per-CPU array. The program is not preempted by another run of itself on
 * the same CPU, so a plain addition loses nothing.
 */
static __always_inline void canopy_count(void *map, __u32 slot)
{
	__u64 *cell = bpf_map_lookup_elem(map, &slot);

	if (cell)
		*cell += 1;
}

#endif
