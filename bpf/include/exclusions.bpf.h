/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>

#include "flow.bpf.h"

/* A destination that the pod's settings exempt from capture: a network, or a port of any address. Each loading of the
 * programs brings maps of its own, filled before: a change of the settings swaps the whole set at once. The loader sets
 * the sizes.
 */
struct excluded_network {
	__u32 prefix; /* bits of what follows that count: all of family, and of address */
	__u32 family; /* 4 or 6: no network of IPv6 addresses holds IPv4 ones, mapped as they are */
	struct address address;
};
_Static_assert(sizeof(struct excluded_network) == 24, "excluded_network has padding");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct excluded_network);
	__type(value, __u8);
	__uint(max_entries, 1);
} excluded_networks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __be16);
	__type(value, __u8);
	__uint(max_entries, 1);
} excluded_ports SEC(".maps");

/* False spares the lookups where there is nothing to find. */
volatile const bool has_exclusions = false;

static __always_inline bool is_excluded_address(const struct address *dst)
{
	struct excluded_network key = {
		.prefix = 32 + 128, .family = is_v4(dst) ? 4 : 6, .address = *dst};

	return has_exclusions && bpf_map_lookup_elem(&excluded_networks, &key);
}

static __always_inline bool is_excluded(const struct flow *flow)
{
	__be16 port = flow->dport;

	if (!has_exclusions)
		return false;
	return is_excluded_address(&flow->dst) || bpf_map_lookup_elem(&excluded_ports, &port);
}
