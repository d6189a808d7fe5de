/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>

/* Not zero while capture looks for a socket on this CPU. The kernel asks dispatch in every such search that meets no
 * connection; dispatch must not take that for a new connection. Bottom halves are off in capture, so nothing else
 * looks for a listener on this CPU meanwhile.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} searching SEC(".maps");

static __always_inline bool is_searching(void)
{
	__u32 key = 0;
	__u32 *value = bpf_map_lookup_elem(&searching, &key);

	return value && *value;
}

static __always_inline void set_searching(bool on)
{
	__u32 key = 0;
	__u32 *value = bpf_map_lookup_elem(&searching, &key);

	if (value)
		*value = on;
}
