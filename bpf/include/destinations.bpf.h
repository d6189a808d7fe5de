/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "flow.bpf.h"

/* Buckets take 16 bytes each from the start, entries 64 as they come. */
#define MAX_DESTINATIONS (1 << 20)

/* Addresses whose connections are captured. One set per node, kept by ztunnel. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, __u8);
	__uint(max_entries, MAX_DESTINATIONS);
} destinations SEC(".maps");

/* One entry: not zero if destinations holds every address that it should. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} complete SEC(".maps");

static __always_inline bool set_is_complete(void)
{
	__u32 key = 0;
	__u32 *is_complete = bpf_map_lookup_elem(&complete, &key);

	return is_complete && *is_complete;
}

static __always_inline bool is_destination(const struct address *addr)
{
	return bpf_map_lookup_elem(&destinations, addr);
}
