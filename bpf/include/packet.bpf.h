/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>

#include "flow.bpf.h"

/* Not in the user API headers. */
#define IPV4_VERSION        4
#define IPV4_FRAGMENT_BITS  bpf_htons(0x3fff) /* more fragments, and the offset */
#define IPV4_MIN_IHL        5
#define TCP_MIN_DOFF        5
#define IPV6_EXTENSION_UNIT 8
#define IPV6_AH_UNIT        4
#define IPV6_MAX_EXTENSIONS 8

/* RFC 8200 section 4.5. */
struct ipv6_fragment {
	__u8 nexthdr;
	__u8 reserved;
	__be16 offset;
	__be32 id;
};

/* RFC 768. */
struct udp_header {
	__be16 source;
	__be16 dest;
	__be16 length;
	__be16 check;
};

enum shape {
	SHAPE_OTHER,  /* not TCP; the packet is not filled */
	SHAPE_TAGGED, /* VLAN tags that the kernel has not taken off yet; nothing is valid */
	SHAPE_TCP,    /* all of the packet is valid */
	SHAPE_UDP, /* all but flags and payload is valid; only if asked for, else it is SHAPE_OTHER */
	SHAPE_FRAGMENT,  /* may be TCP; only the addresses are valid */
	SHAPE_MALFORMED, /* headers cut short or inconsistent; nothing is valid */
	SHAPE_HEADERS, /* IPv6 extension headers that are not followed; only the addresses are valid */
};

struct packet {
	struct flow flow;
	__u32 offset; /* of the TCP header, from the network header */
	__be32 flags; /* TCP_FLAG_* */
	bool payload; /* true if in doubt */
};

/* Offsets count from the network header: what is before it depends on the device. */
static __always_inline bool load(struct __sk_buff *skb, __u32 offset, void *to, __u32 size)
{
	return !bpf_skb_load_bytes_relative(skb, offset, to, size, BPF_HDR_START_NET);
}

/* total is the length of the packet without its link header; 0 if it does not fit the header's field (BIG TCP). */
static __always_inline enum shape parse_tcp(struct __sk_buff *skb, __u32 offset, __u32 total,
					    struct packet *packet)
{
	struct tcphdr tcp;

	if (!load(skb, offset, &tcp, sizeof(tcp)) || tcp.doff < TCP_MIN_DOFF)
		return SHAPE_MALFORMED;
	packet->offset = offset;
	packet->flow.sport = tcp.source;
	packet->flow.dport = tcp.dest;
	packet->flags = tcp_flag_word(&tcp);
	packet->payload = !total || total > offset + tcp.doff * sizeof(__be32);
	return SHAPE_TCP;
}

static __always_inline enum shape parse_udp(struct __sk_buff *skb, __u32 offset,
					    struct packet *packet)
{
	struct udp_header udp;

	if (!load(skb, offset, &udp, sizeof(udp)))
		return SHAPE_OTHER; /* nobody can answer it */
	packet->offset = offset;
	packet->flow.sport = udp.source;
	packet->flow.dport = udp.dest;
	return SHAPE_UDP;
}

static __always_inline enum shape parse_ipv4(struct __sk_buff *skb, struct packet *packet,
					     bool want_udp)
{
	struct iphdr ip;

	if (!load(skb, 0, &ip, sizeof(ip)) || ip.version != IPV4_VERSION || ip.ihl < IPV4_MIN_IHL)
		return SHAPE_MALFORMED;
	if (ip.protocol != IPPROTO_TCP && !(want_udp && ip.protocol == IPPROTO_UDP))
		return SHAPE_OTHER;
	packet->flow.src = from_v4(ip.saddr);
	packet->flow.dst = from_v4(ip.daddr);
	if (ip.frag_off & IPV4_FRAGMENT_BITS)
		return ip.protocol == IPPROTO_TCP ? SHAPE_FRAGMENT : SHAPE_OTHER;
	if (want_udp && ip.protocol == IPPROTO_UDP)
		return parse_udp(skb, ip.ihl * sizeof(__be32), packet);
	return parse_tcp(skb, ip.ihl * sizeof(__be32), bpf_ntohs(ip.tot_len), packet);
}

/* Extension headers that another header follows. */
static __always_inline bool is_extension(__u8 nexthdr)
{
	return nexthdr == IPPROTO_HOPOPTS || nexthdr == IPPROTO_ROUTING ||
	       nexthdr == IPPROTO_DSTOPTS || nexthdr == IPPROTO_AH;
}

/* Where a header is, from the network header, and of what type it is. */
#define POSITION(offset, nexthdr) ((offset) << 8 | (nexthdr))
#define OFFSET(position)          ((position) >> 8)
#define NEXTHDR(position)         ((__u8)(position))

/* Returns the position of the header after the extension header at position; 0 if that is cut short; the same position
 * again if it routes the packet on, because the destination in front is then not the last.
 *
 * Global, so that the verifier checks it once, not on each path through the loop that calls it: that took it 4000
 * instructions and 5 ms per program (6.18).
 */
__noinline __u32 skip_extension(struct __sk_buff *skb, __u32 position)
{
	struct ipv6_rt_hdr ext; /* begins like all others */
	__u32 offset = OFFSET(position);
	__u8 type = NEXTHDR(position);

	if (!load(skb, offset, &ext, sizeof(ext)))
		return 0;
	if (type == IPPROTO_ROUTING && ext.segments_left)
		return position;
	/* RFC 4302 section 2.2: AH counts in other units than all others. */
	if (type == IPPROTO_AH)
		offset += (ext.hdrlen + 2) * IPV6_AH_UNIT;
	else
		offset += (ext.hdrlen + 1) * IPV6_EXTENSION_UNIT;
	return POSITION(offset, ext.nexthdr);
}

/* nexthdr is what follows the fragment header in the first fragment: what is or may lead to TCP counts as TCP. */
static __always_inline enum shape parse_fragment(struct __sk_buff *skb, __u32 offset)
{
	struct ipv6_fragment fragment;

	if (!load(skb, offset, &fragment, sizeof(fragment)))
		return SHAPE_MALFORMED;
	if (fragment.nexthdr == IPPROTO_TCP || fragment.nexthdr == IPPROTO_FRAGMENT ||
	    is_extension(fragment.nexthdr))
		return SHAPE_FRAGMENT;
	return SHAPE_OTHER;
}

static __always_inline enum shape parse_ipv6(struct __sk_buff *skb, struct packet *packet,
					     bool want_udp)
{
	struct ipv6hdr ip;
	__u32 position;
	__u32 total;

	if (!load(skb, 0, &ip, sizeof(ip)))
		return SHAPE_MALFORMED;
	__builtin_memcpy(&packet->flow.src, &ip.saddr, sizeof(packet->flow.src));
	__builtin_memcpy(&packet->flow.dst, &ip.daddr, sizeof(packet->flow.dst));
	total = ip.payload_len ? sizeof(ip) + bpf_ntohs(ip.payload_len) : 0;
	position = POSITION((__u32)sizeof(ip), ip.nexthdr);

#pragma clang loop unroll(disable)
	for (int i = 0; i < IPV6_MAX_EXTENSIONS && is_extension(NEXTHDR(position)); i++) {
		position = skip_extension(skb, position);
		if (!position)
			return SHAPE_MALFORMED;
	}
	if (NEXTHDR(position) == IPPROTO_TCP)
		return parse_tcp(skb, OFFSET(position), total, packet);
	if (want_udp && NEXTHDR(position) == IPPROTO_UDP)
		return parse_udp(skb, OFFSET(position), packet);
	if (NEXTHDR(position) == IPPROTO_FRAGMENT)
		return parse_fragment(skb, OFFSET(position));
	return is_extension(NEXTHDR(position)) ? SHAPE_HEADERS : SHAPE_OTHER;
}

/* Fills packet, which must be zero, from a packet of IP or of anything else. */
static __always_inline enum shape parse_any(struct __sk_buff *skb, struct packet *packet,
					    bool want_udp)
{
	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		return parse_ipv4(skb, packet, want_udp);
	case bpf_htons(ETH_P_IPV6):
		return parse_ipv6(skb, packet, want_udp);
	case bpf_htons(ETH_P_8021Q):
	case bpf_htons(ETH_P_8021AD):
		return SHAPE_TAGGED;
	default:
		return SHAPE_OTHER;
	}
}

/* parse_any for those who ask for no UDP. */
static __always_inline enum shape parse(struct __sk_buff *skb, struct packet *packet)
{
	return parse_any(skb, packet, false);
}

/* The first segment of a connection: SYN without ACK, whatever else is set. */
static __always_inline bool is_syn(const struct packet *packet)
{
	return (packet->flags & (TCP_FLAG_SYN | TCP_FLAG_ACK)) == TCP_FLAG_SYN;
}
