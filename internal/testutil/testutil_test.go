// SPDX-License-Identifier: Apache-2.0

package testutil

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPodsOfANodeReachEachOther(t *testing.T) {
	RequireRoot(t)
	node := NewNode(t)
	client, server := node.Pod(t, "client"), node.Pod(t, "server")
	for _, family := range []string{"4", "6"} {
		echo := server.Echo(t, "server", netip.AddrPortFrom(server.Addr(family), 0).String())
		got, err := client.AskFrom(echo.Addr)
		if err != nil {
			t.Fatalf("IPv%s: %v", family, err)
		}
		if got.Name != "server" || got.From.Addr() != client.Addr(family) {
			t.Errorf("IPv%s: got %q from %v, want server from %v", family, got.Name, got.From, client.Addr(family))
		}
	}
}

func TestPodsCannotLeaveTheirNode(t *testing.T) {
	RequireRoot(t)
	pod := NewNode(t).Pod(t, "pod")
	for _, outside := range []string{"198.51.100.1:80", "[2001:db8::1]:80"} {
		_, err := pod.AskFrom(netip.MustParseAddrPort(outside))
		if !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.EACCES) {
			t.Errorf("dial %s: got %v, want unreachable", outside, err)
		}
	}
}

func TestDeletedNamespaceIsGone(t *testing.T) {
	RequireRoot(t)
	n := NetNS(t, "gone")
	n.Delete(t)
	n.Delete(t)
	if _, err := os.Stat(n.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stat %s: got %v, want not exist", n.Path, err)
	}
}

func TestBPFFSIsABPFFS(t *testing.T) {
	RequireRoot(t)
	dir := BPFFS(t)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if st.Type != unix.BPF_FS_MAGIC {
		t.Errorf("%s: got magic %#x, want %#x", dir, st.Type, unix.BPF_FS_MAGIC)
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Error(err)
	}
}

func TestCAIssuesWhatVerifies(t *testing.T) {
	ca, other := NewCA(t), NewCA(t)
	const uri = "spiffe://cluster.local/ns/demo/sa/client"
	verify := func(c tls.Certificate, root *CA) error {
		_, err := c.Leaf.Verify(x509.VerifyOptions{Roots: root.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		return err
	}
	good := ca.Issue(t, uri)
	if err := verify(good, ca); err != nil {
		t.Errorf("good certificate: %v", err)
	}
	if got := good.Leaf.URIs[0].String(); got != uri {
		t.Errorf("URI: got %q, want %q", got, uri)
	}
	if err := verify(good, other); err == nil {
		t.Error("certificate verifies against another CA")
	}
	if err := verify(ca.Issue(t, uri, Expired), ca); err == nil {
		t.Error("expired certificate verifies")
	}
}

func TestEventuallyWaits(t *testing.T) {
	tries := 0
	Eventually(t, time.Second, func() error {
		if tries++; tries < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	if tries != 3 {
		t.Errorf("tries: got %d, want 3", tries)
	}
}

func TestOlderThan(t *testing.T) {
	for _, tt := range []struct {
		release, version string
		want             bool
	}{
		{"6.18.35", "6.6", false},
		{"6.6.0-rc1", "6.6", false},
		{"6.1.90+deb", "6.6", true},
		{"5.15.0", "6.6", true},
		{"7.0.0", "6.6", false},
	} {
		got, err := olderThan(tt.release, tt.version)
		if err != nil || got != tt.want {
			t.Errorf("olderThan(%q, %q): got %v, %v, want %v", tt.release, tt.version, got, err, tt.want)
		}
	}
}
