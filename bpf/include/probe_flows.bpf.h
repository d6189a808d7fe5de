/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "flow.bpf.h"

#define MAX_PROBE_FLOWS 16384

/* Connections of host processes to pods of this node, with the kernel time of their start. One map per node. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct flow);
	__type(value, __u64);
	__uint(max_entries, MAX_PROBE_FLOWS);
} probe_flows SEC(".maps");
