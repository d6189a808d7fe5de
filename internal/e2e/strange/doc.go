// SPDX-License-Identifier: Apache-2.0

// Package strange holds only tests: pods that are not as most pods are, on two real nodes with the real binaries. Each
// shows what is in mutual TLS, that no byte is lost, and that what works without us works with us. docs/PODS.md has a
// line for each.
package strange
