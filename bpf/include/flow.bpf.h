/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* An IPv6 address, or an IPv4 address as ::ffff:a.b.c.d, in network order. */
struct address {
	__be32 word[4];
};

/* One direction of a TCP connection as its first packet shows it, all in network order.
 * A hash key: the assertion keeps padding out.
 */
struct flow {
	struct address src;
	struct address dst;
	__be16 sport;
	__be16 dport;
};
_Static_assert(sizeof(struct flow) == 36, "flow has padding");

#define V4_MAPPED_PREFIX    bpf_htonl(0x0000ffff)
#define V4_LOOPBACK_NET     bpf_htonl(0x7f000000)
#define V4_LOOPBACK_NETMASK bpf_htonl(0xff000000)

static __always_inline struct address from_v4(__be32 addr)
{
	return (struct address){{0, 0, V4_MAPPED_PREFIX, addr}};
}

static __always_inline bool is_v4(const struct address *addr)
{
	return !addr->word[0] && !addr->word[1] && addr->word[2] == V4_MAPPED_PREFIX;
}

/* 127.0.0.0/8 or ::1. */
static __always_inline bool is_loopback(const struct address *addr)
{
	if (is_v4(addr))
		return (addr->word[3] & V4_LOOPBACK_NETMASK) == V4_LOOPBACK_NET;
	return !addr->word[0] && !addr->word[1] && !addr->word[2] && addr->word[3] == bpf_htonl(1);
}

static __always_inline bool same_address(const struct address *a, const struct address *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] &&
	       a->word[3] == b->word[3];
}

/* The other direction of the same connection. */
static __always_inline struct flow reversed(const struct flow *flow)
{
	return (struct flow){flow->dst, flow->src, flow->dport, flow->sport};
}

/* True if flow was written to map, a hash of kernel times, less than max_age nanoseconds ago.
 * An old entry is no entry: addresses and ports are used again, and these maps exempt from capture.
 */
static __always_inline bool is_fresh(void *map, const struct flow *flow, __u64 max_age)
{
	__u64 *written = bpf_map_lookup_elem(map, flow);

	return written && bpf_ktime_get_ns() - *written < max_age;
}
