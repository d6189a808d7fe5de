// SPDX-License-Identifier: Apache-2.0

// Package programs holds only tests: real clients and servers in two pods on two nodes, with the real binaries between
// them. Every byte must come as it was sent, over both families, and the access log must say that all of it went in
// mutual TLS. docs/PROGRAMS.md has a line for each.
package programs
