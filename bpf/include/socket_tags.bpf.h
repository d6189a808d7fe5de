/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "flow.bpf.h"

enum tag {
	TAG_NONE = 0,
	TAG_PROXY = 1, /* ztunnel's own socket, or the child of its listener: never captured */
	TAG_LOCAL = 2, /* the flow goes to ztunnel */
	TAG_PASS = 3,  /* the flow leaves as it is */
};

/* What is known of a socket. The flow is that of the last decision, as the socket sends it, and zero for TAG_PROXY:
 * a socket can be disconnected and used again, and a listener's tag is inherited by its children.
 */
struct socket_tag {
	__u32 tag;
	struct flow flow;
};
_Static_assert(sizeof(struct socket_tag) == 40, "socket_tag has padding");

/* One map per node. Applications cannot write it, whatever their capabilities. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct socket_tag);
} socket_tags SEC(".maps");
