/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>

enum slot {
	SLOT_OUTBOUND4 = 0,
	SLOT_OUTBOUND6 = 1,
	SLOT_INBOUND4 = 2,
	SLOT_INBOUND6 = 3,
	SLOT_HBONE4 = 4,
	SLOT_HBONE6 = 5,
	SLOT_DNS_UDP4 = 6,
	SLOT_DNS_UDP6 = 7,
	SLOT_DNS_TCP4 = 8,
	SLOT_DNS_TCP6 = 9,
	SLOT_MAX = 16,
};

/* ztunnel's listeners in this namespace. An entry goes by itself when its socket is closed.
 * Sizes, not types: with types the kernel refuses the first attempt to create the map and the loader's second one
 * takes 20 ms (Linux 6.18).
 */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u64));
	__uint(max_entries, SLOT_MAX);
} listeners SEC(".maps");
