//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* tcx egress of a pod's lo: records each connection that really starts there, so that dispatch leaves it to the app. */

#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include "include/flow.bpf.h"
#include "include/local_flows.bpf.h"
#include "include/packet.bpf.h"
#include "include/steering.bpf.h"
#include "include/verdict.bpf.h"

SEC("tcx/egress")
int local(struct __sk_buff *skb)
{
	struct packet packet = {};
	__u64 now;

	/* A pod that marks its own packets is routed to lo like a bounced one. It is captured like one, too. */
	if ((skb->mark & STEERING_MASK) == STEERING_MARK)
		return TC_ACT_UNSPEC;
	if (parse(skb, &packet) != SHAPE_TCP || !is_syn(&packet))
		return TC_ACT_UNSPEC;
	/* dispatch never steers these. */
	if (is_loopback(&packet.flow.dst))
		return TC_ACT_UNSPEC;
	now = bpf_ktime_get_ns();
	if (!bpf_map_update_elem(&local_flows, &packet.flow, &now, BPF_ANY))
		count(VERDICT_LOCAL_RECORDED);
	return TC_ACT_UNSPEC;
}

char __license[] SEC("license") = "Dual BSD/GPL";
