//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* bind of the apps of enrolled pods: ztunnel's accepted connections own the app's address and port, and so would keep an
 * app from binding it that does not set SO_REUSEADDR. Two listeners still cannot have the same port.
 */

#include <linux/bpf.h>

#include "include/namespaces.bpf.h"
#include "include/witness.bpf.h"

/* Not in the user API headers. */
#define SOCK_STREAM  1
#define SOL_SOCKET   1
#define SO_REUSEADDR 2

/* What bind programs return to let the call go on. */
#define ALLOW 1

static __always_inline int share_port(struct bpf_sock_addr *ctx)
{
	int on = 1;

	testify(ctx, WITNESS_BIND);
	/* For UDP the option means that another may take the port over. */
	if (ctx->type != SOCK_STREAM || !has_flag(bpf_get_netns_cookie(ctx), NAMESPACE_BIND))
		return ALLOW;
	/* If that fails, bind does what it does without us. */
	bpf_setsockopt(ctx, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	return ALLOW;
}

SEC("cgroup/bind4")
int bind4(struct bpf_sock_addr *ctx)
{
	return share_port(ctx);
}

SEC("cgroup/bind6")
int bind6(struct bpf_sock_addr *ctx)
{
	return share_port(ctx);
}

char __license[] SEC("license") = "Dual BSD/GPL";
