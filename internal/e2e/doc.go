// SPDX-License-Identifier: Apache-2.0

// Package e2e has only tests: they run the built binaries on two nodes made of network namespaces and break them.
// What works, "make demo" shows; here is what must go wrong in the right way.
package e2e
