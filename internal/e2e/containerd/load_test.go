// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/installer/cniconf"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

func TestFiftyPodsAtOnce(t *testing.T) {
	newest(t, func(t *testing.T, r release) {
		n := newMeshNode(t, r)
		server := n.mustRun("server", "mesh")
		before := n.traces()
		const many = 50 // about what a node of a small cluster starts after a reboot
		pods := make([]*pod, many)
		n.must(inParallel(many, func(i int) (err error) {
			pods[i], err = n.runPod(fmt.Sprintf("many-%d", i), []string{"mesh", "plain"}[i%2])
			return err
		}))
		seen := map[netip.Addr]bool{}
		for _, p := range pods {
			seen[p.addr4], seen[p.addr6] = true, true
		}
		if len(seen) != 2*many {
			t.Errorf("got %d addresses, want %d", len(seen), 2*many)
		}
		n.must(inParallel(many, func(i int) error {
			err := reaches(pods[i], server)
			if plain := i%2 == 1; plain && err == nil {
				return fmt.Errorf("%s reached the server in clear", pods[i].name)
			} else if plain {
				return nil
			}
			return err
		}))
		n.must(inParallel(many, func(i int) error { return n.removePod(pods[i]) }))
		n.wantUnknown("many-0", "many-24", "many-48")
		testutil.Eventually(t, effect, func() error {
			if after := n.traces(); after != before {
				return fmt.Errorf("left behind:\n%s\nwant\n%s", after, before)
			}
			return nil
		})
	})
}

// traces is what pods leave on a node: addresses, links and pins.
func (n *node) traces() string {
	n.t.Helper()
	leases, err := filepath.Glob(filepath.Join(n.ipam(), "lab", "[0-9f]*"))
	n.must(err)
	links, err := n.lab.Output(n.NS, effect, "ip", "-o", "link", "show", "type", "veth")
	n.must(err)
	pins := 0
	err = filepath.WalkDir(n.PinRoot(), func(string, os.DirEntry, error) error { pins++; return nil })
	n.must(err)
	return fmt.Sprintf("%d addresses, %d links, %d pins", len(leases), strings.Count(links, "\n"), pins)
}

// TestConflistOverwrittenUnderLoad has another CNI replace the list, time and again, while pods come and go.
func TestConflistOverwrittenUnderLoad(t *testing.T) {
	each(t, func(t *testing.T, r release) {
		n := newMeshNode(t, r)
		server, legacy := n.mustRun("server", "mesh"), n.mustRun("legacy", "plain")
		stop := make(chan struct{})
		churn := make(chan error, 1)
		go func() { churn <- n.churn(stop) }()
		for range 3 {
			n.must(n.replaceConflist(r.version))
			testutil.Eventually(t, effect, n.entryInPlace)
		}
		close(stop)
		if err := <-churn; err != nil {
			t.Errorf("pods made meanwhile: %v", err)
		}
		n.waitChain("bridge", "portmap", "recorder", "sluice-cni")
		n.wantMesh("afterwards", n.mustRun("late", "mesh"), server, legacy)
	})
}

// churn makes and removes pods until stop is closed.
func (n *node) churn(stop <-chan struct{}) error {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return nil
		default:
		}
		p, err := n.runPod(fmt.Sprintf("churn-%d", i), []string{"mesh", "plain"}[i%2])
		if err == nil {
			err = n.removePod(p)
		}
		if err != nil {
			return err
		}
	}
}

func (n *node) entryInPlace() error {
	list, err := os.ReadFile(n.ConflistPath())
	if err == nil && !cniconf.Contains(list) {
		err = errors.New("our entry is not back")
	}
	return err
}
