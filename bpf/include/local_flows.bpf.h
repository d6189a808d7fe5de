/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include "flow.bpf.h"

/* An entry is needed for as long as a packet takes from lo's egress to lo's ingress. */
#define MAX_LOCAL_FLOWS 1024

/* Connections that start on lo, with the kernel time of their SYN. Losing one sends it to the proxy. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct flow);
	__type(value, __u64);
	__uint(max_entries, MAX_LOCAL_FLOWS);
} local_flows SEC(".maps");
