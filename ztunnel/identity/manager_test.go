// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func testID(name string) Identity {
	return Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: name}
}

// inBubble runs f with a manager on a clock that leaps whenever everyone waits.
func inBubble(t *testing.T, cfg Config, f func(t *testing.T, m *Manager, ca *authority)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t)
		cfg.CA = ca
		m := NewManager(cfg)
		defer m.Close()
		f(t, m, ca)
	})
}

func mustGet(t *testing.T, m *Manager, id Identity) *Bundle {
	t.Helper()
	b, err := m.Get(t.Context(), id)
	if err != nil {
		t.Fatalf("Get(%s): %v", id, err)
	}
	return b
}

func serialOf(b *Bundle) string { return b.Cert.Leaf.SerialNumber.String() }

func TestGetWaitsForTheFirstResult(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, m *Manager, ca *authority) {
		ca.hold = make(chan struct{})
		time.AfterFunc(3*time.Second, func() { close(ca.hold) })
		begin := time.Now()
		b := mustGet(t, m, testID("cart"))
		if waited := time.Since(begin); waited != 3*time.Second {
			t.Errorf("Get waited %v, want 3s", waited)
		}
		if got := PeerNames(b); !slices.Equal(got, []string{"spiffe://cluster.local/ns/shop/sa/cart"}) {
			t.Errorf("leaf names %v", got)
		}
		if again := mustGet(t, m, testID("cart")); again != b {
			t.Error("a second Get returned another bundle")
		}
		if n := ca.requests(); n != 1 {
			t.Errorf("%d requests, want 1", n)
		}
	})
}

// PeerNames are the URI names of b's leaf.
func PeerNames(b *Bundle) []string { return uris(b.Cert.Leaf) }

func TestConcurrentGetsShareOneRequest(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, m *Manager, ca *authority) {
		ca.hold = make(chan struct{})
		results := make(chan error)
		for range 20 {
			go func() {
				_, err := m.Get(t.Context(), testID("cart"))
				results <- err
			}()
		}
		synctest.Wait()
		close(ca.hold)
		for range 20 {
			if err := <-results; err != nil {
				t.Errorf("Get: %v", err)
			}
		}
		if n := ca.requests(); n != 1 {
			t.Errorf("%d requests, want 1", n)
		}
	})
}

func TestGetEndsWithItsContext(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, m *Manager, ca *authority) {
		ca.hold = make(chan struct{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := m.Get(ctx, testID("cart"))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Get = %v, want deadline exceeded", err)
		}
		if _, ok := errors.AsType[*UnavailableError](err); !ok {
			t.Errorf("Get = %T, want *UnavailableError", err)
		}
	})
}

func TestRequestIsWhatIstioExpects(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, m *Manager, ca *authority) {
		mustGet(t, m, testID("cart"))
		csr := ca.csrs[0]
		if key, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
			t.Errorf("key is %T, want P-256", csr.PublicKey)
		}
		if csr.SignatureAlgorithm != x509.ECDSAWithSHA256 {
			t.Errorf("signature is %v, want ECDSA-SHA256", csr.SignatureAlgorithm)
		}
		if err := csr.CheckSignature(); err != nil {
			t.Errorf("signature: %v", err)
		}
		if got := csr.Subject.String(); got != "" {
			t.Errorf("subject is %q, want empty", got)
		}
		if len(csr.URIs) != 1 || csr.URIs[0].String() != testID("cart").String() {
			t.Errorf("URIs are %v, want %s", csr.URIs, testID("cart"))
		}
		if len(csr.Extensions) != 1 || !csr.Extensions[0].Critical {
			t.Errorf("extensions are %+v, want one, critical", csr.Extensions)
		}
	})
}

func TestRenewsAtHalfLife(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, m *Manager, ca *authority) {
		first := mustGet(t, m, testID("cart"))
		time.Sleep(29 * time.Minute)
		synctest.Wait()
		if n := ca.requests(); n != 1 {
			t.Fatalf("%d requests before half-life, want 1", n)
		}
		mustGet(t, m, testID("cart"))
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if n := ca.requests(); n != 2 {
			t.Fatalf("%d requests after half-life, want 2", n)
		}
		if second := mustGet(t, m, testID("cart")); serialOf(second) == serialOf(first) {
			t.Error("still the first certificate after half-life")
		}
	})
}

func TestOldCertificateServesWhileRenewalFails(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, m *Manager, ca *authority) {
		first := mustGet(t, m, testID("cart"))
		ca.set(func() { ca.fail = errRefused })
		time.Sleep(59 * time.Minute)
		if b := mustGet(t, m, testID("cart")); b != first {
			t.Error("another certificate, want the old one until it expires")
		}
		if n := ca.requests(); n < 4 {
			t.Errorf("%d requests, want several retries", n)
		}
		time.Sleep(2 * time.Minute)
		_, err := m.Get(t.Context(), testID("cart"))
		if !errors.Is(err, errRefused) {
			t.Errorf("Get of an expired certificate = %v, want the renewal's error", err)
		}
		t.Log(err)
		ca.set(func() { ca.fail = nil })
		time.Sleep(4 * time.Minute)
		if b := mustGet(t, m, testID("cart")); b == first {
			t.Error("expired certificate was served")
		}
	})
}

func TestExpiredIsNeverServed(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, m *Manager, ca *authority) {
		first := mustGet(t, m, testID("cart"))
		mustGet(t, m, testID("cart"))
		ca.set(func() { ca.hold = make(chan struct{}) }) // the renewal hangs
		time.Sleep(61 * time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if b, err := m.Get(ctx, testID("cart")); err == nil {
			t.Errorf("Get returned a certificate that ended at %v at %v", b.Cert.Leaf.NotAfter, time.Now())
		}
		ca.set(func() { close(ca.hold); ca.hold = nil })
		if b := mustGet(t, m, testID("cart")); b == first {
			t.Error("expired certificate was served")
		}
	})
}

func TestFailureBacksOff(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, m *Manager, ca *authority) {
		ca.fail = errRefused
		m.Hold(testID("cart"))
		time.Sleep(20 * time.Minute)
		want := time.Second
		_, times := ca.log()
		for i := 1; i < len(times); i++ {
			got := times[i].Sub(times[i-1])
			if got < want*8/10 || got > want*12/10 {
				t.Errorf("retry %d came after %v, want %v give or take a fifth", i, got, want)
			}
			want = min(want*2, 150*time.Second)
		}
		if len(times) < 12 {
			t.Errorf("%d requests in 20 minutes, want a dozen", len(times))
		}
	})
}

func TestFailureIsReportedAtOnceUntilARetrySucceeds(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, m *Manager, ca *authority) {
		ca.fail = errRefused
		for range 2 {
			begin := time.Now()
			_, err := m.Get(t.Context(), testID("cart"))
			if want := "no certificate for spiffe://cluster.local/ns/shop/sa/cart: refused by the test"; err == nil || err.Error() != want {
				t.Errorf("Get = %v, want %q", err, want)
			}
			if waited := time.Since(begin); waited != 0 {
				t.Errorf("Get waited %v, want none", waited)
			}
		}
		if n := ca.requests(); n != 1 {
			t.Errorf("%d requests, want 1: callers do not cause retries", n)
		}
		ca.set(func() { ca.fail = nil })
		time.Sleep(1300 * time.Millisecond)
		mustGet(t, m, testID("cart"))
	})
}

func TestConcurrencyAndPriorities(t *testing.T) {
	inBubble(t, Config{Concurrency: 2}, func(t *testing.T, m *Manager, ca *authority) {
		ca.hold = make(chan struct{})
		for i := range 6 {
			m.Hold(testID(fmt.Sprint("warm", i)))
			synctest.Wait() // each arrives before the next
		}
		if n := ca.requests(); n != 2 {
			t.Fatalf("%d requests at once, want 2", n)
		}
		go m.Get(t.Context(), testID("fresh"))
		synctest.Wait()
		go m.Get(t.Context(), testID("warm5"))
		synctest.Wait()
		for range 6 {
			ca.set(func() { close(ca.hold); ca.hold = make(chan struct{}) })
			synctest.Wait()
		}
		order, _ := ca.log()
		if len(order) != 7 {
			t.Fatalf("asked for %v, want 7", order)
		}
		// Two at a time start together, in either order.
		slices.Sort(order[0:2])
		slices.Sort(order[2:4])
		slices.Sort(order[4:6])
		if want := []string{"warm0", "warm1", "fresh", "warm5", "warm2", "warm3", "warm4"}; !slices.Equal(order, want) {
			t.Errorf("asked in the order %v, want %v", order, want)
		}
	})
}

func TestRenewalComesAfterNewcomers(t *testing.T) {
	inBubble(t, Config{Concurrency: 1}, func(t *testing.T, m *Manager, ca *authority) {
		m.Hold(testID("old"))
		m.Hold(testID("blocker"))
		synctest.Wait()
		ca.set(func() { ca.hold = make(chan struct{}) })
		time.Sleep(29 * time.Minute)
		m.Hold(testID("busy")) // holds the only slot while the others become due
		time.Sleep(2 * time.Minute)
		m.Hold(testID("new"))
		synctest.Wait()
		ca.set(func() { close(ca.hold); ca.hold = nil })
		synctest.Wait()
		order, _ := ca.log()
		if got := order[3]; got != "new" {
			t.Errorf("after the slot was free came %q, want \"new\" before the renewals", got)
		}
	})
}

// TestPrefetchForgetCerts is the scenario test_prefetch_forget_certs of ambient section 11.1.
func TestPrefetchForgetCerts(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, m *Manager, ca *authority) {
		m.Hold(testID("cart"))
		synctest.Wait()
		if n := ca.requests(); n != 1 {
			t.Errorf("%d requests after Hold, want 1", n)
		}
		time.Sleep(5*time.Hour + time.Minute)
		synctest.Wait()
		if n := ca.requests(); n < 9 {
			t.Errorf("%d requests, want renewals although nobody used it", n)
		}
		m.Release(testID("cart"))
		before := ca.requests()
		time.Sleep(5 * time.Hour)
		if n := ca.requests(); n != before {
			t.Errorf("%d requests after Release, want none", n-before)
		}
		if s := m.Snapshot(); len(s) != 0 {
			t.Errorf("snapshot after Release: %+v", s)
		}
	})
}

func TestLastReleaseDrops(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, m *Manager, ca *authority) {
		id := testID("cart")
		m.Hold(id)
		m.Hold(id)
		m.Release(id)
		time.Sleep(5*time.Hour + time.Minute)
		synctest.Wait()
		if n := ca.requests(); n < 9 {
			t.Errorf("%d requests, want renewals for the one who holds it still", n)
		}
		m.Release(id)
		if s := m.Snapshot(); len(s) != 0 {
			t.Errorf("snapshot after the last Release: %+v", s)
		}
		m.Release(id) // one too many takes nothing from those who come later
		m.Hold(id)
		mustGet(t, m, id)
		if s := m.Snapshot(); len(s) != 1 {
			t.Errorf("snapshot after Hold: %+v", s)
		}
	})
}

// Pods with one identity come and go: nobody's certificate goes with another one's pod.
func TestHoldersDoNotDropEachOthersCertificate(t *testing.T) {
	ca := newAuthority(t)
	m := NewManager(Config{CA: ca})
	defer m.Close()
	var pods sync.WaitGroup
	for range 8 {
		pods.Go(func() {
			for range 200 {
				m.Hold(testID("cart"))
				if _, err := m.Get(t.Context(), testID("cart")); err != nil {
					t.Errorf("Get while holding: %v", err)
				}
				m.Release(testID("cart"))
			}
		})
	}
	pods.Wait()
	if s := m.Snapshot(); len(s) != 0 {
		t.Errorf("snapshot after all are gone: %+v", s)
	}
}

// The timer that drops what nobody wants fires in the very moment in which somebody comes to want it.
func TestWantedAtTheMomentOfDropping(t *testing.T) {
	inBubble(t, Config{Concurrency: 200}, func(t *testing.T, m *Manager, ca *authority) {
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		for i := range 200 {
			_, _ = m.Get(gone, testID(fmt.Sprint("cart", i)))
		}
		synctest.Wait()
		first := mustGet(t, m, testID("marker"))
		time.Sleep(time.Until(first.halfLife()))
		for i := range 200 {
			go m.Hold(testID(fmt.Sprint("cart", i)))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if s := m.Snapshot(); len(s) != 201 {
			t.Errorf("%d identities are left, want all 200 and the marker", len(s))
		}
	})
}

func TestReleaseFreesThoseWhoWait(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, m *Manager, ca *authority) {
		ca.hold = make(chan struct{})
		result := make(chan error)
		m.Hold(testID("cart"))
		go func() {
			_, err := m.Get(t.Context(), testID("cart"))
			result <- err
		}()
		synctest.Wait()
		m.Release(testID("cart"))
		if err := <-result; !errors.Is(err, ErrForgotten) {
			t.Errorf("Get = %v, want ErrForgotten", err)
		}
	})
}

func TestUnusedIsDroppedInsteadOfRenewed(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, m *Manager, ca *authority) {
		mustGet(t, m, testID("stray")) // as a Get that raced with Release
		time.Sleep(5 * time.Hour)
		if n := ca.requests(); n > 2 {
			t.Errorf("%d requests for an identity that nobody uses", n)
		}
		if s := m.Snapshot(); len(s) != 0 {
			t.Errorf("still held: %+v", s)
		}
	})
}

func TestRefusedAndUnusedIsDropped(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, m *Manager, ca *authority) {
		ca.fail = errRefused
		_, _ = m.Get(t.Context(), testID("stray"))
		time.Sleep(time.Hour)
		if s := m.Snapshot(); len(s) != 0 {
			t.Errorf("still asked for: %+v", s)
		}
	})
}

func TestBackdatedCertificateDoesNotSpin(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, m *Manager, ca *authority) {
		ca.backdate = 50 * time.Minute // of an hour: half-life is over when it comes
		m.Hold(testID("cart"))
		time.Sleep(time.Hour)
		if n := ca.requests(); n < 10 || n > 14 {
			t.Errorf("%d requests in an hour, want one every 5 minutes", n)
		}
	})
}

func TestCloseFailsGet(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, m *Manager, ca *authority) {
		ca.hold = make(chan struct{})
		m.Hold(testID("cart"))
		synctest.Wait()
		m.Close()
		if _, err := m.Get(t.Context(), testID("cart")); !errors.Is(err, ErrForgotten) {
			t.Errorf("Get after Close = %v, want ErrForgotten", err)
		}
	})
}

func TestAcceptanceCheck(t *testing.T) {
	id := testID("cart")
	for _, test := range []struct {
		name  string
		spoil func(ca, other *authority)
		want  string
	}{
		{"other identity", func(ca, _ *authority) {
			ca.edit = func(c *x509.Certificate) { u := *c.URIs[0]; u.Path = "/ns/shop/sa/other"; c.URIs[0] = &u }
		}, "unexpected identity: got spiffe://cluster.local/ns/shop/sa/other, want " + id.String()},
		{"no identity", func(ca, _ *authority) {
			ca.edit = func(c *x509.Certificate) { c.URIs = nil; c.DNSNames = []string{"x"} }
		}, "unexpected identity: got nobody, want " + id.String()},
		{"a second identity", func(ca, _ *authority) {
			ca.edit = func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }
		}, "unexpected identity: got"},
		{"other key", func(ca, _ *authority) {
			stranger, _ := ca.leaf(id, &ca.rootKey.PublicKey)
			ca.chain = func(c []string) []string { c[0] = stranger; return c }
		}, "certificate is for another key than the one requested"},
		{"root of someone else", func(ca, other *authority) {
			ca.chain = func(c []string) []string { c[2] = pemText(other.root); return c }
		}, "is not trusted: x509: certificate signed by unknown authority"},
		{"intermediate missing", func(ca, _ *authority) {
			ca.chain = func(c []string) []string { return []string{c[0], c[2]} }
		}, "is not trusted: x509: certificate signed by unknown authority"},
		{"leaf alone", func(ca, _ *authority) {
			ca.chain = func(c []string) []string { return c[:1] }
		}, "certificate chain has 1 elements, want at least leaf and root"},
		{"empty answer", func(ca, _ *authority) {
			ca.chain = func([]string) []string { return nil }
		}, "certificate chain has 0 elements"},
		{"not PEM", func(ca, _ *authority) {
			ca.chain = func(c []string) []string { c[1] = "garbage"; return c }
		}, "certificate chain element 1: no PEM certificate"},
		{"a private key", func(ca, _ *authority) {
			ca.chain = func(c []string) []string { c[2] = strings.ReplaceAll(c[2], "CERTIFICATE", "PRIVATE KEY"); return c }
		}, `certificate chain, root: PEM block "PRIVATE KEY", want CERTIFICATE`},
		{"expired", func(ca, _ *authority) { ca.backdate = 2 * time.Hour }, "expired at"},
		{"not valid yet", func(ca, _ *authority) { ca.backdate = -time.Hour }, "is not valid before"},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, Config{}, func(t *testing.T, m *Manager, ca *authority) {
				test.spoil(ca, newAuthority(t))
				_, err := m.Get(t.Context(), id)
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("Get = %v, want error with %q", err, test.want)
				}
			})
		})
	}
}

func TestSeveralRootsInTheLastElement(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, m *Manager, ca *authority) {
		next := newAuthority(t)
		ca.chain = func(c []string) []string { c[2] += pemText(next.root); return c }
		if b := mustGet(t, m, testID("cart")); len(b.RootCerts) != 2 || len(b.Cert.Certificate) != 2 {
			t.Errorf("%d roots and %d certificates to send, want 2 and 2", len(b.RootCerts), len(b.Cert.Certificate))
		}
	})
}

func TestNonsenseIdentityIsNotAskedFor(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, m *Manager, ca *authority) {
		_, err := m.Get(t.Context(), Identity{TrustDomain: "td", Namespace: "a/b", ServiceAccount: "c"})
		if err == nil || !strings.Contains(err.Error(), `namespace "a/b" holds a character`) {
			t.Errorf("Get = %v", err)
		}
		if ca.requests() != 0 {
			t.Error("the CA was asked")
		}
	})
}

func TestSnapshot(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, m *Manager, ca *authority) {
		mustGet(t, m, testID("b"))
		ca.set(func() { ca.fail = errRefused })
		_, _ = m.Get(t.Context(), testID("c"))
		ca.set(func() { ca.hold = make(chan struct{}) })
		m.Hold(testID("a"))
		synctest.Wait()
		states := m.Snapshot()
		var got []string
		for _, s := range states {
			got = append(got, fmt.Sprintf("%s %s %d+%d", s.Identity[len("spiffe://cluster.local/ns/shop/sa/"):], s.State, len(s.CertChain), len(s.RootCerts)))
		}
		if want := []string{"a Initializing 0+0", "b Available 2+1", "c Unavailable: refused by the test 0+0"}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		text, err := json.Marshal(states)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{`"identity":`, `"certChain":[{"pem":"`, `"serialNumber":"`, `"validFrom":"2000-01-01T00:00:00Z"`, `"expirationTime":"2000-01-01T01:00:00Z"`, `"rootCerts":[`} {
			if !strings.Contains(string(text), key) {
				t.Errorf("no %s in %s", key, text)
			}
		}
	})
}
