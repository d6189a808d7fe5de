// SPDX-License-Identifier: Apache-2.0

// Package containerd has only tests: they run a real containerd and runc on a node made of a network namespace, with our
// plugin at the end of its chain, and make, kill and restart everything while pods run. The pods come from an image that
// is built here; nothing is fetched.
//
//	test ──CRI──► containerd ──► runc: pause, app
//	                  └─► bridge, portmap, recorder, sluice-cni ──► agent ──► ztunnel
//
// recorder writes down what the runtime calls plugins with. The tests of the facts it shows are the reason for much of
// what plugin does; a runtime that changes its ways fails them.
package containerd
