/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "flow.bpf.h"

/* Not in the user API headers. */
#define AF_INET6 10

/* What a program returns that has no opinion: 0 would overwrite the reply of other owners' programs. */
#define NO_OPINION 1

/* The connection as its socket sends it: src is the local end.
 *
 * The one place that knows this context's byte orders (linux/bpf.h, struct bpf_sock_ops): local_port is in the host's,
 * remote_port in network order, in the upper half of its word where the host is little endian.
 */
static __always_inline struct flow sent_by(struct bpf_sock_ops *ctx)
{
	struct flow flow = {};
	/* Volatile and here: else clang 14 joins these with the reads of the IPv6 words into reads of computed
	 * addresses, and the verifier (6.18) refuses those: "dereference of modified ctx ptr".
	 */
	__be32 local_ip4 = *(volatile __be32 *)&ctx->local_ip4;
	__be32 remote_ip4 = *(volatile __be32 *)&ctx->remote_ip4;

	if (ctx->family == AF_INET6) {
		/* An IPv4 connection of an IPv6 socket has both, mapped. */
		flow.src = (struct address){{ctx->local_ip6[0], ctx->local_ip6[1],
					     ctx->local_ip6[2], ctx->local_ip6[3]}};
		flow.dst = (struct address){{ctx->remote_ip6[0], ctx->remote_ip6[1],
					     ctx->remote_ip6[2], ctx->remote_ip6[3]}};
	} else {
		flow.src = from_v4(local_ip4);
		flow.dst = from_v4(remote_ip4);
	}
	flow.sport = bpf_htons(ctx->local_port);
	flow.dport = bpf_htons(bpf_ntohl(ctx->remote_port));
	return flow;
}

/* Asks for more callbacks on this socket, and leaves those that other owners asked for. */
static __always_inline void want_callbacks(struct bpf_sock_ops *ctx, __u32 flags)
{
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | flags);
}
