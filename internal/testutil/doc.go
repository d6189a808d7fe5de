// SPDX-License-Identifier: Apache-2.0

// Package testutil is what tests of several packages share: gates for privilege and kernel, network namespaces joined
// by veth pairs, servers that answer with their name, a bpffs of one's own and a small CA.
//
// Every namespace made here is an island: nothing joins it to the machine's own interfaces, so a test cannot reach the
// network. All of it cleans up after itself through t.Cleanup and has random names, so tests may run in parallel,
// beside a running demo and any number of times.
package testutil
