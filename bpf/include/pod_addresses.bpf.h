/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "flow.bpf.h"

#define MAX_POD_ADDRESSES 8192

/* Addresses of the enrolled pods, with the cookie of the namespace that each is in. One map per node. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, __u64);
	__uint(max_entries, MAX_POD_ADDRESSES);
} pod_addresses SEC(".maps");
