// SPDX-License-Identifier: Apache-2.0

// Package conformance has only tests: the scenarios of the reference's own tests, under their names, with the built
// binaries on two nodes made of network namespaces. docs/CONFORMANCE.md lists them all.
//
// ztunnels read what a control plane would say from a file, so that there are waypoints, other networks and application
// tunnels. Their certificates come from the embedded control plane.
package conformance
