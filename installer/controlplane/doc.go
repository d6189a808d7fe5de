// SPDX-License-Identifier: Apache-2.0

// Package controlplane is the control plane that the agent embeds when there is no istiod: the same xDS and CA services,
// fed from folders of plain files instead of the Kubernetes API.
//
//	manifests/*.yaml ─┐                                     ┌─ istio.workload.Address ──────┐
//	  (the user)      ├─► Catalog ─► Snapshot ─► translate ─┤                               ├─► delta xDS ─┐
//	workloads/*.yaml ─┘   watch,        │                   └─ istio.security.Authorization ┘              ├─ unix socket
//	  (the agents)        last good     └─► Enrolled (the agent's own question)        root key ─► CA ─────┘
//
// A [Catalog] reads the folders and keeps, file by file, the last state that parsed. A [Server] translates what the
// catalog holds the way istiod does and serves it to this node's ztunnel, with certificates for the identities that the
// agent vouches for.
package controlplane
