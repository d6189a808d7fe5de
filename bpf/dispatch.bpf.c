//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* sk_lookup of a pod's namespace: chooses the listener of each new connection, bounced or from the network. */

#include <linux/bpf.h>
#include <linux/in.h>

#include "include/flow.bpf.h"
#include "include/listeners.bpf.h"
#include "include/local_flows.bpf.h"
#include "include/probe_flows.bpf.h"
#include "include/searching.bpf.h"
#include "include/steering.bpf.h"
#include "include/verdict.bpf.h"

/* Not in the user API headers. */
#define AF_INET  2
#define AF_INET6 10

/* Test runs cannot set ingress_ifindex: they set this to 0 instead, and everything is from lo. */
volatile const __u32 loopback_ifindex = STEERING_LOOPBACK_IFINDEX;

/* As in capture. */
volatile const bool capture_dns = false;
volatile const bool bypass_inbound = false;

const enum slot *unused_slot __attribute__((unused));

/* The one place that knows this context's byte orders: remote_port is in network order, local_port in the host's
 * (linux/bpf.h, struct bpf_sk_lookup).
 */
static __always_inline struct flow flow_of(struct bpf_sk_lookup *ctx)
{
	struct flow flow = {};
	/* Volatile and here: else clang 14 joins these with the reads of the last IPv6 words into reads of computed
	 * addresses, and the verifier (6.18) refuses those: "dereference of modified ctx ptr".
	 */
	__be32 remote_ip4 = *(volatile __be32 *)&ctx->remote_ip4;
	__be32 local_ip4 = *(volatile __be32 *)&ctx->local_ip4;

	if (ctx->family == AF_INET) {
		flow.src = from_v4(remote_ip4);
		flow.dst = from_v4(local_ip4);
	} else {
		flow.src = (struct address){{ctx->remote_ip6[0], ctx->remote_ip6[1],
					     ctx->remote_ip6[2], ctx->remote_ip6[3]}};
		flow.dst = (struct address){{ctx->local_ip6[0], ctx->local_ip6[1],
					     ctx->local_ip6[2], ctx->local_ip6[3]}};
	}
	flow.sport = ctx->remote_port;
	flow.dport = bpf_htons(ctx->local_port);
	return flow;
}

static __always_inline int pass(enum verdict verdict)
{
	count(verdict);
	return SK_PASS;
}

/* Gives the connection to the listener in slot, or in the one after it for IPv6. */
static __always_inline int assign(struct bpf_sk_lookup *ctx, __u32 slot, enum verdict verdict)
{
	struct bpf_sock *listener;
	long err;

	if (ctx->family == AF_INET6)
		slot++;
	listener = bpf_map_lookup_elem(&listeners, &slot);
	if (!listener)
		goto refuse;
	/* Replace what a program of another owner chose before us. */
	err = bpf_sk_assign(ctx, listener, BPF_SK_LOOKUP_F_REPLACE);
	bpf_sk_release(listener);
	if (!err)
		return pass(verdict);
refuse:
	count(VERDICT_DROP_NO_LISTENER);
	return SK_DROP;
}

/* Only bounced packets come in on lo: what really starts there shows the device that its route would have taken. */
static __always_inline bool is_bounced_query(struct bpf_sk_lookup *ctx)
{
	return capture_dns && ctx->local_port == STEERING_DNS_PORT &&
	       ctx->ingress_ifindex == loopback_ifindex;
}

static __always_inline int datagram(struct bpf_sk_lookup *ctx)
{
	struct flow flow;

	if (!is_bounced_query(ctx))
		return SK_PASS;
	flow = flow_of(ctx);
	if (is_loopback(&flow.dst))
		return SK_PASS;
	return assign(ctx, SLOT_DNS_UDP4, VERDICT_DNS);
}

SEC("sk_lookup")
int dispatch(struct bpf_sk_lookup *ctx)
{
	struct flow flow;

	if (ctx->protocol == IPPROTO_UDP)
		return datagram(ctx);
	if (ctx->protocol != IPPROTO_TCP)
		return SK_PASS;
	/* Not a connection: capture wants no listener. */
	if (is_searching())
		return SK_DROP;
	flow = flow_of(ctx);
	if (is_loopback(&flow.dst))
		return pass(VERDICT_LOOPBACK);
	if (is_fresh(&local_flows, &flow, LOCAL_FLOW_MAX_AGE))
		return pass(VERDICT_LOCAL_FLOW);
	if (is_bounced_query(ctx))
		return assign(ctx, SLOT_DNS_TCP4, VERDICT_DNS);
	if (ctx->ingress_ifindex == loopback_ifindex)
		return assign(ctx, SLOT_OUTBOUND4, VERDICT_OUTBOUND);
	/* Before probes: processes of the host may speak mutual TLS, and no app can be had on this port. */
	if (ctx->local_port == STEERING_HBONE_PORT)
		return assign(ctx, SLOT_HBONE4, VERDICT_HBONE);
	if (is_fresh(&probe_flows, &flow, PROBE_FLOW_MAX_AGE))
		return pass(VERDICT_PROBE);
	if (bypass_inbound)
		return pass(VERDICT_BYPASS_INBOUND);
	return assign(ctx, SLOT_INBOUND4, VERDICT_INBOUND);
}

char __license[] SEC("license") = "Dual BSD/GPL";
