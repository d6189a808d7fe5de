// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/sluice-mesh/sluice/internal/lab"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// getent resolves a name with the C library, as an app in a pod whose kubelet wrote resolv.conf does: by the search
// list, for both families at once from one connected socket.
func (m *mesh) getent(p *lab.Pod, resolvConf, name string) (found []string, err error) {
	m.t.Helper()
	path := filepath.Join(m.t.TempDir(), "resolv.conf")
	m.must(os.WriteFile(path, []byte(resolvConf), 0o644))
	const script = `mount --bind "$1" /etc/resolv.conf && exec getent ahosts "$2"`
	out, err := exec.Command("nsenter", "--net="+inside(p).Path, "unshare", "--mount", "sh", "-c", script, "sh", path, name).Output()
	if err != nil {
		return nil, fmt.Errorf("getent ahosts %s: %w", name, err)
	}
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[1] == "STREAM" {
			found = append(found, fields[0])
		}
	}
	slices.Sort(found)
	return found, nil
}

func TestTheCLibraryResolvesNamesOfTheMesh(t *testing.T) {
	m, asker, server := newAsker(t)
	const search = "search mesh.svc.cluster.local svc.cluster.local cluster.local\n"
	both, foreign := []string{"10.96.0.53", "fd00:96::53"}, []string{foreign4.String(), foreign6.String()}
	for _, at := range []netip.Addr{lab.OutsideAddr4, lab.OutsideAddr6} {
		for _, options := range []string{"options ndots:5\n", "options ndots:5 use-vc\n", "options ndots:1 edns0 single-request\n"} {
			conf := fmt.Sprintf("nameserver %s\n%s%s", at, search, options)
			before := server.asked.Load()
			for _, name := range []string{"web", "web.mesh", "web.mesh.svc", "web.mesh.svc.cluster.local"} {
				if got, err := m.getent(asker, conf, name); err != nil || !slices.Equal(got, both) {
					t.Errorf("%s, %q: got %v, %v, want %v", name, conf, got, err, both)
				}
			}
			if n := server.asked.Load() - before; n != 0 {
				t.Errorf("%q: the server was asked %d times for names of the mesh", conf, n)
			}
			if got, err := m.getent(asker, conf, "www.example.org."); err != nil || !slices.Equal(got, foreign) {
				t.Errorf("a name of the server's, %q: got %v, %v, want %v", conf, got, err, foreign)
			}
		}
	}
}

const excludingManifest = `
apiVersion: v1
kind: Pod
metadata:
  name: asker
  namespace: mesh
  labels: {app: asker}
  annotations: {ambient.istio.io/dns-capture: "true", sluice.dev/exclude-outbound-cidrs: "%s"}
spec: {serviceAccountName: asker}
`

// TestQueriesToAnExcludedServerAreItsOwn is for pods that ask a server on purpose, and want to hear it.
func TestQueriesToAnExcludedServerAreItsOwn(t *testing.T) {
	m, asker, _ := newAsker(t)
	m.write("asker.yaml", fmt.Sprintf(excludingManifest, lab.OutsideAddr4))
	for _, network := range []string{"udp", "tcp"} {
		testutil.Eventually(t, effect, func() error {
			return wantAddresses(asker, network, lab.OutsideAddr4, "web.mesh.svc.cluster.local.", dns.TypeA, foreign4.String())
		})
		if err := wantAddresses(asker, network, lab.OutsideAddr6, "web.mesh.svc.cluster.local.", dns.TypeA, "10.96.0.53"); err != nil {
			t.Errorf("another server: %v", err)
		}
	}
}
