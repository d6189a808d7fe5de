/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

/* Why a flow or a packet was steered, passed or refused. Counted per pod.
 *
 * Numbers are kept: pinned counters outlive the programs. New ones are appended to their half.
 * Segments of a flow that was decided before are not counted again.
 */
enum verdict {
	VERDICT_UNSPEC = 0,

	/* capture, once per SYN. */
	VERDICT_CAPTURED = 1,    /* handed to ztunnel */
	VERDICT_PASSTHROUGH = 2, /* destination is not in the mesh */
	/* capture, other segments. */
	VERDICT_REPLY = 3,             /* the app's answer to a delivery, bounced back to ztunnel */
	VERDICT_PROBE_REPLY = 4,       /* the app's answer to a host probe */
	VERDICT_GRANDFATHERED = 5,     /* of a connection that was open before enrolment */
	VERDICT_STRAY_CONTROL = 6,     /* no socket, no payload: RST, FIN, ACK, SYN cookie */
	VERDICT_STRAY_PASSTHROUGH = 7, /* no socket, destination is not in the mesh */
	VERDICT_NOT_TCP = 8,           /* any other protocol: passed, per packet */
	VERDICT_FRAGMENT = 9,          /* TCP fragment, destination is not in the mesh */

	/* local, once per SYN. */
	VERDICT_LOCAL_RECORDED = 10,

	/* dispatch, once per connection, and per segment that is nobody's. */
	VERDICT_LOOPBACK = 11,   /* to 127.0.0.0/8 or ::1 */
	VERDICT_LOCAL_FLOW = 12, /* delivery or self-call, to the app */
	VERDICT_PROBE = 13,      /* host probe, to the app */
	VERDICT_OUTBOUND = 14,   /* to the outbound listener */
	VERDICT_INBOUND = 15,    /* to the inbound plaintext listener */
	VERDICT_HBONE = 16,      /* to the HBONE listener */

	/* capture, once per SYN or query. */
	VERDICT_EXCLUDED = 17,     /* the pod's settings exempt this address or port */
	VERDICT_DNS_CAPTURED = 18, /* a query, handed to ztunnel's resolver */
	/* dispatch, once per query over UDP and once per connection. */
	VERDICT_DNS = 19, /* to a DNS listener */
	/* For pods whose inbound traffic bypasses ztunnel. */
	VERDICT_BYPASS_INBOUND = 20, /* dispatch, once per connection: to the app */
	VERDICT_BYPASS_REPLY = 21,   /* capture, per segment until its socket is known */

	/* From here on: refused. */
	VERDICT_DROP_STRAY = 32, /* capture: payload towards the mesh that no connection explains */
	VERDICT_DROP_FRAGMENT = 33,  /* capture: TCP fragment towards the mesh */
	VERDICT_DROP_MALFORMED = 34, /* capture: headers cut short or inconsistent */
	VERDICT_DROP_HEADERS = 35, /* capture: too many IPv6 extension headers, or source routing */
	VERDICT_DROP_BOUNCE = 36,  /* capture: the packet could not be rewritten */
	VERDICT_DROP_NO_LISTENER = 37,   /* dispatch, capture: the slot is empty */
	VERDICT_DROP_LEAK = 38,          /* guard: SYN towards the mesh that is not mutual TLS */
	VERDICT_DROP_LEAK_FRAGMENT = 39, /* guard: TCP fragment towards the mesh */
	VERDICT_DROP_LEAK_HEADERS =
		40, /* guard: headers that hide what the packet is, towards the mesh */
	VERDICT_DROP_LEAK_TAGGED =
		41, /* guard: more than one VLAN tag, which hide what the packet is */

	VERDICT_FIRST_DROP = VERDICT_DROP_STRAY,
	VERDICT_MAX = 64,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, VERDICT_MAX);
} verdicts SEC(".maps");

static __always_inline void count(enum verdict verdict)
{
	__u32 key = verdict;
	__u64 *counter = bpf_map_lookup_elem(&verdicts, &key);

	if (counter)
		(*counter)++;
}
