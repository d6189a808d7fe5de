/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>

#define MAX_NAMESPACES 4096

/* What the programs of the node do for a namespace. */
enum namespace_flag {
	NAMESPACE_BIND = 1,  /* bind: let its apps share ports with ztunnel's connections */
	NAMESPACE_FLOWS = 2, /* flows: tell of its connections */
};

/* The namespaces of enrolled pods, by cookie. One map per node. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u32);
	__uint(max_entries, MAX_NAMESPACES);
} namespaces SEC(".maps");

static __always_inline bool has_flag(__u64 netns, enum namespace_flag flag)
{
	__u32 *flags = bpf_map_lookup_elem(&namespaces, &netns);

	return flags && *flags & flag;
}
