// SPDX-License-Identifier: Apache-2.0

// Package bpf holds the programs that steer the TCP of enrolled pods, and loads, attaches and pins them.
//
//	                pod netns
//	app ──► eth0 egress [capture] ── not mesh ──────────────────────────► host end ingress [guard] ──► network
//	             │ mesh: mark, bounce to lo
//	             ▼
//	         ip rule ► local route ► [dispatch] ► outbound listener ► ztunnel ──► eth0 ──► peer:15008
//
//	network ──► eth0 ──► [dispatch] ► HBONE or inbound listener ► ztunnel ──► lo egress [local] ──► app
//
// A [Node] is what all pods of a node share, a [Pod] is one instance of the programs. Everything lives in pins below
// one folder of a bpffs, so it outlives the process that made it:
//
//	ROOT/node/         socket_tags probe_flows destinations complete namespaces pod_addresses flow_events flows_lost
//	                   host, links: probe bind4 bind6 flows, hostend_COOKIE_IFINDEX
//	ROOT/pods/ID/      info verdicts listeners local_flows grandfathered searching, links: dispatch local
//	                   capture_IFINDEX guard_IFINDEX
//	ROOT/work/ID/      the lock of a pod; below it what is being built or taken away
package bpf

//go:generate go tool bpf2go -tags linux -target bpfel -type tag -type socket_tag -type flow -type steering -type verdict capture capture.bpf.c -- -O2 -mcpu=v3 -Wall -Werror -nostdlibinc -I include/vendor
//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types local local.bpf.c -- -O2 -mcpu=v3 -Wall -Werror -nostdlibinc -I include/vendor
//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types -type slot dispatch dispatch.bpf.c -- -O2 -mcpu=v3 -Wall -Werror -nostdlibinc -I include/vendor
//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types guard guard.bpf.c -- -O2 -mcpu=v3 -Wall -Werror -nostdlibinc -I include/vendor
