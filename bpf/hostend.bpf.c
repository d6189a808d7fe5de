//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* tcx egress of the host's end of a pod's link: does what probe does, where there is no cgroup2 for that. */

#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include "include/packet.bpf.h"
#include "include/probe_flows.bpf.h"

/* True if a socket of this namespace is connecting just now, with exactly these addresses and ports. That the packet
 * has a sender (skb->sk) would not do: forwarded packets keep theirs, also from one namespace to the next.
 */
static __always_inline bool is_connecting(struct __sk_buff *skb, const struct flow *flow)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	bool connecting;
	__u32 size;

	/* The lookup wants what the socket receives. */
	if (is_v4(&flow->dst)) {
		tuple.ipv4.saddr = flow->dst.word[3];
		tuple.ipv4.daddr = flow->src.word[3];
		tuple.ipv4.sport = flow->dport;
		tuple.ipv4.dport = flow->sport;
		size = sizeof(tuple.ipv4);
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, &flow->dst, sizeof(tuple.ipv6.saddr));
		__builtin_memcpy(tuple.ipv6.daddr, &flow->src, sizeof(tuple.ipv6.daddr));
		tuple.ipv6.sport = flow->dport;
		tuple.ipv6.dport = flow->sport;
		size = sizeof(tuple.ipv6);
	}
	sk = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	connecting = sk->state == BPF_TCP_SYN_SENT;
	bpf_sk_release(sk);
	return connecting;
}

SEC("tcx/egress")
int hostend(struct __sk_buff *skb)
{
	struct packet packet = {};
	__u64 now;

	if (parse(skb, &packet) != SHAPE_TCP || !is_syn(&packet))
		return TC_ACT_UNSPEC;
	if (is_connecting(skb, &packet.flow)) {
		now = bpf_ktime_get_ns();
		bpf_map_update_elem(&probe_flows, &packet.flow, &now, BPF_ANY);
	} else {
		/* Somebody else's, at the address and port of a probe that is over. */
		bpf_map_delete_elem(&probe_flows, &packet.flow);
	}
	return TC_ACT_UNSPEC;
}

char __license[] SEC("license") = "Dual BSD/GPL";
