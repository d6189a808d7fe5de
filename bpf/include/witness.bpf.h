/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#define MAX_WITNESSES 16

enum witness {
	WITNESS_PROBE = 1,
	WITNESS_FLOWS = 2,
	WITNESS_BIND = 4,
};

/* Sockets of the loader's, by cookie, with which it tests that a program is called at all; the programs that saw one
 * leave their bit there. A cgroup may be attached to with success although no process is in it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u64);
	__type(value, __u32);
	__uint(max_entries, MAX_WITNESSES);
} witnesses SEC(".maps");

static __always_inline void testify(void *ctx, enum witness which)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	__u32 *seen = bpf_map_lookup_elem(&witnesses, &cookie);

	if (seen)
		__sync_fetch_and_or(seen, which);
}
