/* SPDX-License-Identifier: GPL-2.0 */
/* What the shapes of objects share: newer types and functions of the kernel, declared here so that
 * older headers do. */
#ifndef SHAPE_H
#define SHAPE_H

#include <linux/bpf.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#define private(name) SEC(".data." #name) __attribute__((visibility("hidden"), aligned(8)))
#define __holds(name, field)             __attribute__((btf_decl_tag("contains:" #name ":" #field)))
#define __kernel_pointer                 __attribute__((btf_type_tag("kptr")))
#define __percpu_pointer                 __attribute__((btf_type_tag("percpu_kptr")))
#define __kernel_type                    __attribute__((preserve_access_index))

#define holder_of(pointer, type, member) ((type *)((void *)(pointer)-offsetof(type, member)))

extern void *bpf_obj_new_impl(__u64 type, void *meta) __ksym;
extern void bpf_obj_drop_impl(void *object, void *meta) __ksym;
extern void *bpf_percpu_obj_new_impl(__u64 type, void *meta) __ksym;
extern void bpf_percpu_obj_drop_impl(void *object, void *meta) __ksym;
#define new_object(type) ((type *)bpf_obj_new_impl(bpf_core_type_id_local(type), NULL))
#define drop(object)     bpf_obj_drop_impl(object, NULL)

#ifndef NO_LICENSE
char _license[] SEC("license") = "GPL";
#endif

#endif
