// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/installer/listeners"
	"github.com/sluice-mesh/sluice/internal/netns"
)

// namespace tells a network namespace from all others of this boot: inodes are given out again, cookies are not.
type namespace struct {
	Inode  uint64 `json:"inode"`
	Cookie uint64 `json:"cookie"`
}

// namespaceAt says which namespace is at path now.
func namespaceAt(path string) (namespace, error) {
	ns, err := netns.Open(path)
	if err != nil {
		return namespace{}, err
	}
	defer func() { _ = ns.Close() }()
	return namespaceOf(ns)
}

func namespaceOf(ns *netns.NS) (namespace, error) {
	id, err := ns.ID()
	if err != nil {
		return namespace{}, err
	}
	n := namespace{Inode: id.Inode}
	err = ns.Do(func() (err error) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		n.Cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	if err != nil {
		return namespace{}, fmt.Errorf("read cookie of network namespace: %w", err)
	}
	return n, nil
}

// inside is what the agent holds open of a pod in the mesh.
type inside struct {
	ns  *netns.NS
	set *listeners.Set
	// toldDNS: ztunnel was last asked to take, or had to find, sockets of queries. Under the workload's lock.
	toldDNS bool
}

// captureDNS is for a pod that ztunnel has yet to be told of.
func (in *inside) captureDNS(on bool) {
	in.set.CaptureDNS(on)
	in.toldDNS = on
}

// openInside opens the pod's namespace if it still is the one that ADD was called for.
func openInside(p *pod) (*inside, error) {
	ns, err := netns.Open(p.sandbox.Netns)
	if err != nil {
		return nil, err
	}
	at, err := namespaceOf(ns)
	if err == nil {
		err = p.sameNamespace(at)
	}
	if err != nil {
		_ = ns.Close()
		return nil, err
	}
	return &inside{ns: ns, set: &listeners.Set{}}, nil
}

func (in *inside) close() {
	in.set.Close()
	_ = in.ns.Close()
}

// pinID names a sandbox's folder of pins. It is the container id, so that two sandboxes of one pod never meet; a
// bpffs allows no dots, which CNI does.
func pinID(containerID string) string {
	if !strings.Contains(containerID, ".") {
		return containerID
	}
	sum := sha256.Sum256([]byte(containerID))
	return "dotted-" + hex.EncodeToString(sum[:16])
}
