/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Numbers that the programs and the loader share. Everything else that is tunable is set per pod. */
enum steering {
	/* Mark of a bounced packet and the bits the ip rule looks at. Clear of Istio's and Cilium's low 12 bits,
	 * kube-proxy's 0xc000 and the high half that Calico and Cilium use.
	 */
	STEERING_MARK = 0x3000,
	STEERING_MASK = 0x3000,
	/* Priority of the ip rule, and the routing table it leads to. */
	STEERING_PRIORITY = 500,
	STEERING_TABLE = 15008,
	/* Inbound port of mutual TLS, the only one that guard lets through. */
	STEERING_HBONE_PORT = 15008,
	STEERING_DNS_PORT = 53,
	/* Always lo: the first device of every network namespace. */
	STEERING_LOOPBACK_IFINDEX = 1,
};

/* How long an entry of local_flows and of probe_flows counts. */
#define LOCAL_FLOW_MAX_AGE 1000000000ULL
#define PROBE_FLOW_MAX_AGE 5000000000ULL
