//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* sockops: records each connection of a process of the host to a pod of this node, source port included, before its
 * first packet, and forgets it with the connection. dispatch leaves such a connection to the app.
 */

#include <linux/bpf.h>

#include "include/flow.bpf.h"
#include "include/pod_addresses.bpf.h"
#include "include/probe_flows.bpf.h"
#include "include/sockops.bpf.h"
#include "include/witness.bpf.h"

/* Cookie of the namespace that probes come from. */
volatile const __u64 host_netns = 0;

const enum witness *unused_witness __attribute__((unused));

static __always_inline void record(struct bpf_sock_ops *ctx)
{
	struct flow flow = sent_by(ctx);
	__u64 now = bpf_ktime_get_ns();

	if (!bpf_map_lookup_elem(&pod_addresses, &flow.dst))
		return;
	if (!bpf_map_update_elem(&probe_flows, &flow, &now, BPF_ANY))
		want_callbacks(ctx, BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTO_CB_FLAG);
}

/* Its port may be another's a moment later. */
static __always_inline void forget(struct bpf_sock_ops *ctx)
{
	struct flow flow = sent_by(ctx);

	bpf_map_delete_elem(&probe_flows, &flow);
}

SEC("sockops")
int probe(struct bpf_sock_ops *ctx)
{
	__u32 op = ctx->op;

	if (op != BPF_SOCK_OPS_TCP_CONNECT_CB && op != BPF_SOCK_OPS_RTO_CB &&
	    op != BPF_SOCK_OPS_STATE_CB)
		return NO_OPINION;
	if (op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		testify(ctx, WITNESS_PROBE);
	if (bpf_get_netns_cookie(ctx) != host_netns)
		return NO_OPINION;
	/* A SYN is sent again after a time that may be longer than an entry counts. */
	if (op == BPF_SOCK_OPS_TCP_CONNECT_CB ||
	    (op == BPF_SOCK_OPS_RTO_CB && ctx->state == BPF_TCP_SYN_SENT))
		record(ctx);
	/* The new state. Also what TIME_WAIT looks like from here. */
	else if (op == BPF_SOCK_OPS_STATE_CB && ctx->args[1] == BPF_TCP_CLOSE)
		forget(ctx);
	return NO_OPINION;
}

char __license[] SEC("license") = "Dual BSD/GPL";
