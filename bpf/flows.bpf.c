//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* sockops: tells of each connection of an app's in an enrolled pod when it opens, every so often while it is used, and
 * when it closes, whichever way it takes. Only tells: nothing here changes what happens to a connection.
 */

#include <linux/bpf.h>
#include <stdbool.h>

#include "include/flow.bpf.h"
#include "include/namespaces.bpf.h"
#include "include/probe_flows.bpf.h"
#include "include/socket_tags.bpf.h"
#include "include/sockops.bpf.h"
#include "include/witness.bpf.h"

/* A ring of bytes: a power of two, and of pages. */
#define FLOW_EVENTS_BYTES (1 << 20)

enum flow_kind {
	FLOW_OPEN = 1,
	FLOW_UPDATE = 2,
	FLOW_CLOSE = 3,
};

enum flow_path {
	PATH_UNKNOWN = 0,
	PATH_CAPTURED = 1,
	PATH_PASSTHROUGH = 2,
	PATH_DELIVERY = 3,
	PATH_PROBE = 4,
	PATH_LOCAL = 5,
};

struct flow_event {
	__u64 at; /* kernel time */
	__u64 netns;
	__u64 socket;
	__u64 sent; /* and acknowledged */
	__u64 received;
	struct flow flow; /* as the socket sends it */
	__u32 rtt_us;
	__u32 retransmits;
	__u8 kind;
	__u8 path;
	__u8 state;
	__u8 outbound;
};
_Static_assert(sizeof(struct flow_event) == 88, "flow_event has padding");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, FLOW_EVENTS_BYTES);
} flow_events SEC(".maps");

/* Events that found no room. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} flows_lost SEC(".maps");

/* What is known of a connection beyond what the kernel counts. */
struct flow_state {
	__u64 due;           /* kernel time of the next update */
	__u64 half_received; /* bytes received when the peer acknowledged our FIN */
	__u8 outbound;
	__u8 opened;
	__u8 path;
	__u8 fin_received;
	__u8 closed;
	__u8 unused[3]; /* no padding */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct flow_state);
} flow_states SEC(".maps");

/* Nanoseconds between two updates. */
volatile const __u64 interval = 10000000000ULL;

const enum flow_kind *unused_flow_kind __attribute__((unused));
const enum flow_path *unused_flow_path __attribute__((unused));
const struct flow_event *unused_flow_event __attribute__((unused));
const enum namespace_flag *unused_namespace_flag __attribute__((unused));

/* capture's note on the socket. */
static __always_inline enum tag tag_of(struct bpf_sock *sk)
{
	struct socket_tag *tag = bpf_sk_storage_get(&socket_tags, sk, NULL, 0);

	return tag ? tag->tag : TAG_NONE;
}

/* NULL if the connection of sk is not followed, or over. */
static __always_inline struct flow_state *state_of(struct bpf_sock *sk)
{
	struct flow_state *state = bpf_sk_storage_get(&flow_states, sk, NULL, 0);

	return state && !state->closed ? state : NULL;
}

/* Begins to follow a connection. NULL if it is not an app's in an enrolled pod, or there is no memory. */
static __always_inline struct flow_state *follow(struct bpf_sock_ops *ctx, struct bpf_sock *sk,
						 bool outbound)
{
	struct flow_state *state;

	if (!has_flag(bpf_get_netns_cookie(ctx), NAMESPACE_FLOWS) || tag_of(sk) == TAG_PROXY)
		return NULL;
	state = bpf_sk_storage_get(&flow_states, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!state)
		return NULL;
	/* A socket may be used again. */
	__builtin_memset(state, 0, sizeof(*state));
	state->outbound = outbound;
	want_callbacks(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
	return state;
}

static __always_inline enum flow_path path_of(struct bpf_sock *sk, const struct flow *flow,
					      bool outbound)
{
	struct flow back = reversed(flow);
	enum tag tag = tag_of(sk);

	if (is_loopback(&flow->dst) || same_address(&flow->src, &flow->dst))
		return PATH_LOCAL;
	if (outbound) {
		if (tag == TAG_LOCAL)
			return PATH_CAPTURED;
		return tag == TAG_PASS ? PATH_PASSTHROUGH : PATH_UNKNOWN;
	}
	if (tag == TAG_LOCAL)
		return PATH_DELIVERY;
	if (bpf_map_lookup_elem(&probe_flows, &back))
		return PATH_PROBE;
	/* dispatch leaves only probes and what comes from lo to apps, unless the pod is to be left alone; that tag
	 * comes with the first segment.
	 */
	return tag == TAG_PASS ? PATH_PASSTHROUGH : PATH_DELIVERY;
}

/* The kernel counts a SYN and a FIN like a byte each. before is the socket's state, the old one while it changes. */
static __always_inline void count_bytes(struct bpf_sock_ops *ctx, struct flow_state *state,
					struct flow_event *event, __u32 before)
{
	bool fin_sent = before == BPF_TCP_CLOSING || before == BPF_TCP_LAST_ACK;

	event->sent = ctx->bytes_acked;
	event->received = ctx->bytes_received;
	if (event->sent && state->outbound)
		event->sent--;
	if (event->sent &&
	    (before == BPF_TCP_FIN_WAIT2 || (fin_sent && ctx->snd_una == ctx->snd_nxt)))
		event->sent--;
	/* From FIN_WAIT2 nothing else leads on than the peer's FIN, which may bring the last bytes. A socket that
	 * its app has closed leaves this state at once, without.
	 */
	if (event->received &&
	    (state->fin_received || (before == BPF_TCP_FIN_WAIT2 && event->kind == FLOW_CLOSE &&
				     event->received > state->half_received)))
		event->received--;
}

/* Waking the reader for each event would cost a connection more than all the rest here: it looks by itself every so
 * often, and is woken only before the ring gets full.
 */
static __always_inline __u64 wakeup(void)
{
	return bpf_ringbuf_query(&flow_events, BPF_RB_AVAIL_DATA) < FLOW_EVENTS_BYTES / 4
		       ? BPF_RB_NO_WAKEUP
		       : BPF_RB_FORCE_WAKEUP;
}

static __always_inline void tell(struct bpf_sock_ops *ctx, struct bpf_sock *sk,
				 struct flow_state *state, enum flow_kind kind, __u32 tcp_state)
{
	struct flow_event *event;
	__u64 *lost;
	__u32 key = 0;

	state->due = bpf_ktime_get_ns() + interval;
	event = bpf_ringbuf_reserve(&flow_events, sizeof(*event), 0);
	if (!event) {
		lost = bpf_map_lookup_elem(&flows_lost, &key);
		if (lost)
			(*lost)++;
		return;
	}
	event->at = state->due - interval;
	event->netns = bpf_get_netns_cookie(ctx);
	event->socket = bpf_get_socket_cookie(ctx);
	event->flow = sent_by(ctx);
	event->rtt_us = ctx->srtt_us >> 3;
	event->retransmits = ctx->total_retrans;
	event->kind = kind;
	event->state = tcp_state;
	event->outbound = state->outbound;
	/* A tag may come, but nothing becomes unknown that was known: probe_flows forgets. */
	if (state->path != PATH_PROBE)
		state->path = path_of(sk, &event->flow, state->outbound);
	event->path = state->path;
	count_bytes(ctx, state, event, tcp_state);
	bpf_ringbuf_submit(event, wakeup());
}

static __always_inline void opened(struct bpf_sock_ops *ctx, struct bpf_sock *sk, bool outbound)
{
	struct flow_state *state = outbound ? state_of(sk) : follow(ctx, sk, false);

	if (!state)
		return;
	state->opened = true;
	/* Before each segment it sends, if only an acknowledgement: the one callback that busy connections have in
	 * either direction.
	 */
	want_callbacks(ctx, BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
	tell(ctx, sk, state, FLOW_OPEN, BPF_TCP_ESTABLISHED);
}

static __always_inline void changed(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct flow_state *state = state_of(sk);
	__u32 before = ctx->args[0];

	if (!state)
		return;
	switch (ctx->args[1]) {
	case BPF_TCP_CLOSE_WAIT:
	case BPF_TCP_CLOSING:
		state->fin_received = true;
		break;
	case BPF_TCP_FIN_WAIT2:
		state->half_received = ctx->bytes_received;
		break;
	case BPF_TCP_CLOSE:
		tell(ctx, sk, state, FLOW_CLOSE, before);
		/* It goes with the socket. To take it away now would cost a grace period of tasks for each connection. */
		state->closed = true;
		break;
	}
}

static __always_inline void update(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct flow_state *state = state_of(sk);

	if (state && state->opened && bpf_ktime_get_ns() >= state->due)
		tell(ctx, sk, state, FLOW_UPDATE, ctx->state);
}

SEC("sockops")
int flows(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	if (!sk)
		return NO_OPINION;
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		testify(ctx, WITNESS_FLOWS);
		follow(ctx, sk, true);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		opened(ctx, sk, true);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		opened(ctx, sk, false);
		break;
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		update(ctx, sk);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		changed(ctx, sk);
		break;
	}
	return NO_OPINION;
}

char __license[] SEC("license") = "Dual BSD/GPL";
