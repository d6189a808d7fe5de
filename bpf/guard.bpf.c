//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* tcx ingress of the host's end of a pod's link: what passed capture by tricks ends here. Its counters are the pod's
 * leak alarm.
 */

#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include "include/destinations.bpf.h"
#include "include/exclusions.bpf.h"
#include "include/packet.bpf.h"
#include "include/steering.bpf.h"
#include "include/verdict.bpf.h"

static __always_inline bool is_mesh(const struct address *dst)
{
	return set_is_complete() && is_destination(dst);
}

static __always_inline int drop(enum verdict verdict)
{
	count(verdict);
	return TC_ACT_SHOT;
}

SEC("tcx/ingress")
int guard(struct __sk_buff *skb)
{
	struct packet packet = {};

	switch (parse(skb, &packet)) {
	case SHAPE_TCP:
		if (is_syn(&packet) && packet.flow.dport != bpf_htons(STEERING_HBONE_PORT) &&
		    is_mesh(&packet.flow.dst) && !is_excluded(&packet.flow))
			return drop(VERDICT_DROP_LEAK);
		break;
	case SHAPE_FRAGMENT:
		if (is_mesh(&packet.flow.dst) && !is_excluded_address(&packet.flow.dst))
			return drop(VERDICT_DROP_LEAK_FRAGMENT);
		break;
	case SHAPE_HEADERS:
		if (is_mesh(&packet.flow.dst))
			return drop(VERDICT_DROP_LEAK_HEADERS);
		break;
	case SHAPE_TAGGED:
		/* The kernel takes one tag off before us and the others after us, and a tag of VLAN 0 means none:
		 * what is inside arrives as if it had never been tagged. No pod of the mesh needs two tags.
		 */
		if (set_is_complete())
			return drop(VERDICT_DROP_LEAK_TAGGED);
		break;
	default:
		break;
	}
	return TC_ACT_UNSPEC;
}

char __license[] SEC("license") = "Dual BSD/GPL";
