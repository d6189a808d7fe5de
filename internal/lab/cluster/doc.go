// SPDX-License-Identifier: Apache-2.0

// Package cluster runs a real Kubernetes cluster on one machine: etcd, the API server, controllers, scheduler, and nodes
// with containerd, runc, kubelet and kube-proxy, CoreDNS, and CNI's ptp and portmap. Nothing is fetched: programs are
// built by "make e2e" and images here.
//
//	10.249.0.1  wire (bridge) ── etcd, kube-apiserver, kube-controller-manager, kube-scheduler       Cluster.Outside
//	             │        │
//	10.249.0.11 node1   node2 10.249.0.12      containerd, kubelet, kube-proxy                       Cluster.Nodes
//	             │        │
//	 10.250.1.0/24        10.250.2.0/24        pods; services: 10.252.0.0/24                         (and fd00:10:2xx::)
//
// A node is a process 1 of its own in namespaces of its own: network, mount, PID, UTS, IPC and cgroup. It sees the
// machine's file system, but /run, /proc, /sys, /sys/fs/bpf and /sys/fs/cgroup are its own, as are /etc, /opt, /var/lib
// and /var/log, which outlive a reboot. So everything is where it is on a node, many clusters fit on a machine beside a
// demo, and no namespace has a route to the machine's own interfaces. All ends with the test's process, however that ends:
// what outlives processes is then removed by one that waits for it.
//
// Needs root. Run so far on machines that have cgroup version 1 beside 2; one with version 2 alone must have cpu, cpuset,
// memory and pids in the cgroup.subtree_control of its root.
//
// What two nodes share is the kernel: settings that are not of a namespace, and its log. Settings that a kubelet would
// change are hidden from it.
package cluster
