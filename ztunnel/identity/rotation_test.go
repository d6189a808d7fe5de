// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// phased is a CA between two roots: one signs, and the answer's last element has one root or both.
type phased struct {
	mu     sync.Mutex
	signer *authority
	roots  []*authority
}

func (p *phased) set(signer *authority, roots ...*authority) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.signer, p.roots = signer, roots
}

func (p *phased) Sign(ctx context.Context, id Identity, csr string) ([]string, error) {
	p.mu.Lock()
	signer, roots := p.signer, p.roots
	p.mu.Unlock()
	chain, err := signer.Sign(ctx, id, csr)
	if err != nil {
		return nil, err
	}
	chain[2] = ""
	for _, r := range roots {
		chain[2] += pemText(r.root)
	}
	return chain, nil
}

// meeting has clients shake hands with a server over loopback TCP, again and again, until the test ends.
type meeting struct {
	address string
	done    atomic.Int64
	failed  chan error // the first
}

func newMeeting(t *testing.T, clients int, client, server *tls.Config) *meeting {
	listener := mustListen(t, "tcp", "127.0.0.1:0")
	g := &meeting{address: listener.Addr().String(), failed: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	var calling, running sync.WaitGroup
	running.Go(func() { g.serve(listener, server, &running) })
	for range clients {
		calling.Go(func() {
			for ctx.Err() == nil {
				if err := g.once(client); err != nil {
					g.report(fmt.Errorf("client: %w", err))
					return
				}
				g.done.Add(1)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		calling.Wait()
		listener.Close()
		running.Wait()
		select {
		case err := <-g.failed:
			t.Errorf("after %d handshakes: %v", g.done.Load(), err)
		default:
		}
	})
	return g
}

func (g *meeting) report(err error) {
	select {
	case g.failed <- err:
	default:
	}
}

// serve echoes.
func (g *meeting) serve(listener net.Listener, server *tls.Config, running *sync.WaitGroup) {
	for {
		raw, err := listener.Accept()
		if err != nil {
			return
		}
		running.Go(func() {
			conn := tls.Server(raw, server)
			defer conn.Close()
			if err := conn.Handshake(); err != nil {
				g.report(fmt.Errorf("server: %w", err))
				return
			}
			_, _ = io.Copy(conn, conn)
		})
	}
}

// once is a whole connection.
func (g *meeting) once(client *tls.Config) error {
	conn, err := g.open(client)
	if err != nil {
		return err
	}
	defer conn.Close()
	return ping(conn)
}

func (g *meeting) open(client *tls.Config) (net.Conn, error) {
	return tls.Dial("tcp", g.address, client)
}

func ping(conn net.Conn) error {
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err
}

// more waits for n handshakes that begin from now on.
func (g *meeting) more(t *testing.T, n int64) {
	t.Helper()
	goal := g.done.Load() + n
	eventually(t, "further handshakes", func() bool { return g.done.Load() >= goal || len(g.failed) > 0 })
}

// signedBy waits until every certificate of m is of a.
func signedBy(t *testing.T, m *Manager, a *authority, ids ...Identity) {
	t.Helper()
	for _, id := range ids {
		eventually(t, "renewal of "+id.String(), func() bool {
			b, err := m.Get(t.Context(), id)
			return err == nil && b.Cert.Leaf.CheckSignatureFrom(a.intermediate) == nil
		})
	}
}

func rotating(t *testing.T, ca CA) *Manager {
	m := NewManager(Config{CA: ca})
	t.Cleanup(m.Close) // after the end of the meeting, which is made later
	return m
}

// short makes certificates of a live so long: seconds are the finest unit of certificates.
func short(a *authority) *authority {
	a.ttl = 6 * time.Second
	return a
}

// TestRotationUnderLoad: certificates live for seconds and are renewed at half of that, under handshakes without a pause.
func TestRotationUnderLoad(t *testing.T) {
	ca := short(newAuthority(t))
	here, there := rotating(t, ca), rotating(t, ca)
	alice, bob := testID("alice"), testID("bob")
	first := serialOf(mustGet(t, there, bob))
	g := newMeeting(t, 2, ClientTLS(here, alice, []string{bob.String()}), ServerTLS(there, bob))
	serials := map[string]bool{first: true}
	eventually(t, "the third certificate", func() bool {
		serials[serialOf(mustGet(t, there, bob))] = true
		return len(serials) >= 3
	})
	g.more(t, 10)
	if n := g.done.Load(); n < 20 {
		t.Errorf("%d handshakes, want a load", n)
	}
}

// TestRootRotationUnderLoad: the CA moves from one root to another as CAs do. Nodes renew at their own times, so old and
// new certificates meet in both directions; a connection made in the beginning outlives it all.
//
//	signs with:       old          old          new          new
//	hands out:        old       old and new  old and new     new
func TestRootRotationUnderLoad(t *testing.T) {
	before, after := short(newAuthority(t)), short(newAuthority(t))
	ca := &phased{}
	ca.set(before, before)
	here, there := rotating(t, ca), rotating(t, ca)
	alice, bob := testID("alice"), testID("bob")
	here.Hold(alice)
	there.Hold(bob)
	client := ClientTLS(here, alice, []string{bob.String()})
	g := newMeeting(t, 2, client, ServerTLS(there, bob))
	g.more(t, 10)
	old, err := g.open(client)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close() // the meeting waits for it
	roots := func(m *Manager, id Identity, n int) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d roots for %s", n, id), func() bool {
			b, err := m.Get(t.Context(), id)
			return err == nil && len(b.RootCerts) == n
		})
	}
	ca.set(before, before, after)
	roots(here, alice, 2)
	roots(there, bob, 2)
	ca.set(after, before, after)
	signedBy(t, here, after, alice)
	g.more(t, 1)
	signedBy(t, there, after, bob)
	g.more(t, 10)
	ca.set(after, after)
	roots(here, alice, 1)
	roots(there, bob, 1)
	g.more(t, 10)
	if err := ping(old); err != nil {
		t.Errorf("connection made under the old root: %v", err)
	}
	// The old root is really gone.
	stranger := bare(certFor(t, before, alice, nil))
	if _, s := handshake(t, stranger, ServerTLS(there, bob)); !asErr[*UntrustedError](s.err) {
		t.Errorf("certificate of the old root: %v, want *UntrustedError", s.err)
	}
}

// TestExpiredIsNotShown: when no renewal comes, handshakes fail on our own side, with a reason.
func TestExpiredIsNotShown(t *testing.T) {
	ca := newAuthority(t)
	ca.ttl = 2 * time.Second
	m := managerOf(t, ca)
	bob := testID("bob")
	mustGet(t, m, bob)
	ca.set(func() { ca.fail = errRefused })
	eventually(t, "expiry", func() bool {
		_, err := m.Get(t.Context(), bob)
		return errors.Is(err, errRefused)
	})
	other := newAuthority(t)
	_, s := handshake(t, bare(certFor(t, other, testID("alice"), nil)), ServerTLS(m, bob))
	if !asErr[*UnavailableError](s.err) {
		t.Errorf("server: %v, want *UnavailableError", s.err)
	}
}
