//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* tcx egress of a pod's own interface: which TCP leaves the pod as it is, and which goes to ztunnel. */

#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include "include/destinations.bpf.h"
#include "include/exclusions.bpf.h"
#include "include/flow.bpf.h"
#include "include/listeners.bpf.h"
#include "include/packet.bpf.h"
#include "include/probe_flows.bpf.h"
#include "include/searching.bpf.h"
#include "include/socket_tags.bpf.h"
#include "include/steering.bpf.h"
#include "include/verdict.bpf.h"

/* Connections that were open when the pod was enrolled, as their peer sends. The loader sets the size. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct flow);
	__type(value, __u8);
	__uint(max_entries, 1);
} grandfathered SEC(".maps");

/* True: capture every destination, as if the set of destinations were never complete. */
volatile const bool capture_all = false;

/* True: queries to port 53, over UDP and TCP, go to ztunnel's resolver. */
volatile const bool capture_dns = false;

/* True: what comes in goes to the app, and so its answers go out. */
volatile const bool bypass_inbound = false;

/* bpf2go takes these from the type information, which keeps only what is used. */
const enum tag *unused_tag __attribute__((unused));
const enum steering *unused_steering __attribute__((unused));
const enum verdict *unused_verdict __attribute__((unused));

/* An incomplete set captures: a mesh member must never be taken for a stranger. Exclusions come before this. */
static __always_inline bool is_captured(const struct address *dst)
{
	return capture_all || !set_is_complete() || is_destination(dst);
}

/* The socket that sends skb, or NULL if that is a request or timewait socket, or none at all. */
static __always_inline struct bpf_sock *sender(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	return sk ? bpf_sk_fullsock(sk) : NULL;
}

static __always_inline struct socket_tag *stored_tag(struct bpf_sock *sk)
{
	return sk ? bpf_sk_storage_get(&socket_tags, sk, NULL, 0) : NULL;
}

/* True for the segments of ztunnel's connections; tag is that of sk, which sends. A SYN-ACK is sent by a request socket,
 * which has no tag: its listener's counts. What a listener sends itself (Linux 6.13) are resets of segments that are
 * nobody's, for instance because the app is gone; those must find their way back to ztunnel like all others.
 */
static __always_inline bool is_from_proxy(struct __sk_buff *skb, struct bpf_sock *sk,
					  const struct socket_tag *tag)
{
	struct bpf_sock *request = skb->sk;

	if (sk)
		return tag && tag->tag == TAG_PROXY && sk->state != BPF_TCP_LISTEN;
	if (!request)
		return false;
	tag = stored_tag(bpf_get_listener_sock(request));
	return tag && tag->tag == TAG_PROXY;
}

/* True if flow is the connection of sk. It is not for the kernel's control socket, which sends resets for all, for a
 * listener that resets a stranger, and behind address translation inside the pod.
 */
static __always_inline bool is_owner(struct bpf_sock *sk, const struct flow *flow)
{
	const struct address *dst = &flow->dst;
	/* Volatile and here: else clang 14 joins this with the read of dst_ip6[3] into one of a computed address,
	 * and the verifier (6.18) refuses that: "pointer arithmetic on sock prohibited".
	 */
	__be32 dst_ip4 = *(volatile __be32 *)&sk->dst_ip4;

	if (sk->src_port != bpf_ntohs(flow->sport) || sk->dst_port != flow->dport)
		return false;
	if (is_v4(dst))
		return dst_ip4 == dst->word[3];
	return sk->dst_ip6[0] == dst->word[0] && sk->dst_ip6[1] == dst->word[1] &&
	       sk->dst_ip6[2] == dst->word[2] && sk->dst_ip6[3] == dst->word[3];
}

/* True if the socket of this very connection sends skb. */
static __always_inline bool is_own_segment(struct __sk_buff *skb, const struct flow *flow)
{
	struct bpf_sock *sk = sender(skb);

	return sk && is_owner(sk, flow);
}

static __always_inline bool same_flow(const struct flow *a, const struct flow *b)
{
	return a->sport == b->sport && a->dport == b->dport && same_address(&a->dst, &b->dst) &&
	       same_address(&a->src, &b->src);
}

/* The tag that an earlier segment of this very flow left. */
static __always_inline enum tag tag_of(const struct socket_tag *tag, const struct flow *flow)
{
	return tag && same_flow(&tag->flow, flow) ? tag->tag : TAG_NONE;
}

/* Remembers a decision for the segments to come. Without it (no memory, no owner) each is decided anew. */
static __always_inline void set_tag(struct __sk_buff *skb, const struct flow *flow, enum tag value)
{
	struct bpf_sock *sk = sender(skb);
	struct socket_tag *tag;

	if (!sk || !is_owner(sk, flow))
		return;
	tag = bpf_sk_storage_get(&socket_tags, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!tag)
		return;
	tag->tag = value;
	tag->flow = *flow;
}

static __always_inline int pass(enum verdict verdict)
{
	count(verdict);
	return TC_ACT_UNSPEC;
}

static __always_inline int drop(enum verdict verdict)
{
	count(verdict);
	return TC_ACT_SHOT;
}

/* Sends the packet back into the pod through lo, where the mark leads it to a local socket. */
static __always_inline int bounce(struct __sk_buff *skb)
{
	/* lo takes only frames for its own address, which is zero. */
	static const __u8 lo_address[ETH_ALEN];

	if (bpf_skb_store_bytes(skb, __builtin_offsetof(struct ethhdr, h_dest), lo_address,
				ETH_ALEN, 0))
		return drop(VERDICT_DROP_BOUNCE);
	skb->mark = STEERING_MARK;
	return bpf_redirect(STEERING_LOOPBACK_IFINDEX, BPF_F_INGRESS);
}

/* True if a socket of this namespace, not a listener, is the other end of flow: ztunnel's, at its client's address. */
static __always_inline bool has_peer(struct __sk_buff *skb, const struct flow *flow)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *peer;
	bool found;
	__u32 size;

	if (is_v4(&flow->dst)) {
		tuple.ipv4.saddr = flow->src.word[3];
		tuple.ipv4.daddr = flow->dst.word[3];
		tuple.ipv4.sport = flow->sport;
		tuple.ipv4.dport = flow->dport;
		size = sizeof(tuple.ipv4);
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, &flow->src, sizeof(tuple.ipv6.saddr));
		__builtin_memcpy(tuple.ipv6.daddr, &flow->dst, sizeof(tuple.ipv6.daddr));
		tuple.ipv6.sport = flow->sport;
		tuple.ipv6.dport = flow->dport;
		size = sizeof(tuple.ipv6);
	}
	set_searching(true);
	peer = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	set_searching(false);
	if (!peer)
		return false;
	found = peer->state != BPF_TCP_LISTEN;
	bpf_sk_release(peer);
	return found;
}

static __always_inline bool has_listener(__u32 slot)
{
	struct bpf_sock *listener = bpf_map_lookup_elem(&listeners, &slot);

	if (!listener)
		return false;
	bpf_sk_release(listener);
	return true;
}

/* Turns an IPv4 SYN into its reset, as if the destination had sent it. dispatch drops a bounced SYN if the slot is
 * empty, and for IPv6 the kernel then sends a reset; for IPv4 it cannot, because the reset's source is no address of
 * the pod's (ip_route_output_key refuses it), and connect() would hang.
 *
 * Only fields of a fixed size change. Addresses and ports just change places, so they leave all checksums as they are.
 */
static __always_inline int refuse_ipv4(struct __sk_buff *skb, const struct packet *packet)
{
	const __u32 network = sizeof(struct ethhdr);
	const __u32 transport = network + packet->offset;
	const __u32 check = transport + __builtin_offsetof(struct tcphdr, check);
	const __be32 addresses[] = {packet->flow.dst.word[3], packet->flow.src.word[3]};
	struct ethhdr eth, back;
	union tcp_word_hdr syn, reset;
	long err;

	count(VERDICT_DROP_NO_LISTENER);
	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)) ||
	    bpf_skb_load_bytes(skb, transport, &syn, sizeof(syn)))
		return TC_ACT_SHOT;
	back = eth;
	__builtin_memcpy(back.h_dest, eth.h_source, ETH_ALEN);
	__builtin_memcpy(back.h_source, eth.h_dest, ETH_ALEN);

	reset = syn;
	reset.hdr.source = syn.hdr.dest;
	reset.hdr.dest = syn.hdr.source;
	reset.hdr.seq = 0;
	reset.hdr.ack_seq = bpf_htonl(bpf_ntohl(syn.hdr.seq) + 1);
	reset.words[3] = (syn.words[3] & TCP_DATA_OFFSET) | TCP_FLAG_RST | TCP_FLAG_ACK;

	err = bpf_skb_store_bytes(skb, 0, &back, sizeof(back), 0);
	err |= bpf_skb_store_bytes(skb, network + __builtin_offsetof(struct iphdr, saddr),
				   addresses, sizeof(addresses), 0);
	err |= bpf_skb_store_bytes(skb, transport, &reset, __builtin_offsetof(struct tcphdr, check),
				   0);
	err |= bpf_l4_csum_replace(skb, check, syn.words[1], reset.words[1], sizeof(__be32));
	err |= bpf_l4_csum_replace(skb, check, syn.words[2], reset.words[2], sizeof(__be32));
	err |= bpf_l4_csum_replace(skb, check, syn.words[3], reset.words[3], sizeof(__be32));
	if (err)
		return TC_ACT_SHOT;
	/* In by the interface that it would have come from, so that no reverse path filter minds. */
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

static __always_inline bool is_dns(const struct packet *packet)
{
	return capture_dns && packet->flow.dport == bpf_htons(STEERING_DNS_PORT);
}

struct decision {
	enum verdict verdict;
	enum tag tag; /* for the flow's next segments; TAG_NONE if they are to be decided anew */
};

/* Decides a new connection, whatever its socket was used for before. */
static __always_inline struct decision first_segment(const struct packet *packet)
{
	if (is_excluded(&packet->flow))
		return (struct decision){VERDICT_EXCLUDED, TAG_PASS};
	if (is_dns(packet))
		return (struct decision){VERDICT_DNS_CAPTURED, TAG_LOCAL};
	if (!is_captured(&packet->flow.dst))
		return (struct decision){VERDICT_PASSTHROUGH, TAG_PASS};
	return (struct decision){VERDICT_CAPTURED, TAG_LOCAL};
}

/* Decides a segment whose flow bears no tag: the app's side of a delivery, a probe, an old connection, or a packet
 * that no connection's own socket sends.
 */
static __always_inline struct decision untagged_segment(struct __sk_buff *skb,
							const struct packet *packet)
{
	struct flow from_peer = reversed(&packet->flow);

	if (has_peer(skb, &packet->flow))
		return (struct decision){VERDICT_REPLY, TAG_LOCAL};
	if (is_fresh(&probe_flows, &from_peer, PROBE_FLOW_MAX_AGE))
		return (struct decision){VERDICT_PROBE_REPLY, TAG_PASS};
	if (bpf_map_lookup_elem(&grandfathered, &from_peer))
		return (struct decision){VERDICT_GRANDFATHERED, TAG_PASS};
	/* The app's side of a connection that dispatch left alone, or its SYN-ACK and resets; no packet by hand. */
	if (bypass_inbound && (!packet->payload || is_own_segment(skb, &packet->flow)))
		return (struct decision){VERDICT_BYPASS_REPLY, TAG_PASS};
	/* Nothing to protect in it, and refusals depend on it. */
	if (!packet->payload)
		return (struct decision){VERDICT_STRAY_CONTROL, TAG_NONE};
	if (is_excluded(&packet->flow) || !is_captured(&packet->flow.dst))
		return (struct decision){VERDICT_STRAY_PASSTHROUGH, TAG_PASS};
	return (struct decision){VERDICT_DROP_STRAY, TAG_NONE};
}

static __always_inline int segment(struct __sk_buff *skb, const struct packet *packet,
				   const struct socket_tag *tag)
{
	struct decision decision;

	if (is_syn(packet)) {
		decision = first_segment(packet);
	} else {
		switch (tag_of(tag, &packet->flow)) {
		case TAG_LOCAL:
			return bounce(skb);
		case TAG_PASS:
			return TC_ACT_UNSPEC;
		default:
			decision = untagged_segment(skb, packet);
		}
	}
	if (is_v4(&packet->flow.dst) &&
	    ((decision.verdict == VERDICT_CAPTURED && !has_listener(SLOT_OUTBOUND4)) ||
	     (decision.verdict == VERDICT_DNS_CAPTURED && !has_listener(SLOT_DNS_TCP4))))
		return refuse_ipv4(skb, packet);
	count(decision.verdict);
	if (decision.verdict >= VERDICT_FIRST_DROP)
		return TC_ACT_SHOT;
	if (decision.tag != TAG_NONE)
		set_tag(skb, &packet->flow, decision.tag);
	return decision.tag == TAG_LOCAL ? bounce(skb) : TC_ACT_UNSPEC;
}

/* UDP has no first packet: each query is decided anew. */
static __always_inline int datagram(struct __sk_buff *skb, const struct packet *packet)
{
	if (!is_dns(packet))
		return pass(VERDICT_NOT_TCP);
	if (is_excluded(&packet->flow))
		return pass(VERDICT_EXCLUDED);
	count(VERDICT_DNS_CAPTURED);
	return bounce(skb);
}

SEC("tcx/egress")
int capture(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct bpf_sock *sk = sender(skb);
	struct socket_tag *tag = stored_tag(sk);

	/* First, and uncounted: it is every packet that ztunnel sends. */
	if (is_from_proxy(skb, sk, tag))
		return TC_ACT_UNSPEC;

	switch (parse_any(skb, &packet, capture_dns)) {
	case SHAPE_TCP:
		return segment(skb, &packet, tag);
	case SHAPE_UDP:
		return datagram(skb, &packet);
	case SHAPE_FRAGMENT:
		/* Ports and flags may be in another fragment, and the receiver may put them together otherwise. */
		if (!is_excluded_address(&packet.flow.dst) && is_captured(&packet.flow.dst))
			return drop(VERDICT_DROP_FRAGMENT);
		return pass(VERDICT_FRAGMENT);
	case SHAPE_MALFORMED:
		return drop(VERDICT_DROP_MALFORMED);
	case SHAPE_HEADERS:
		return drop(VERDICT_DROP_HEADERS);
	default:
		return pass(VERDICT_NOT_TCP);
	}
}

char __license[] SEC("license") = "Dual BSD/GPL";
