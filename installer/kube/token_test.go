// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/util/cache"
)

// calledFrom is the context of a call from an address.
func calledFrom(t *testing.T, address string) context.Context {
	return peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.ParseIP(address), Port: 1}})
}

// forged are tokens that only the API can tell from good ones.
func forged(good string, number int) string {
	head, _, _ := strings.Cut(good, ".")
	claims := strings.Split(good, ".")[1]
	signature := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "signature %d", number))
	return head + "." + claims + "." + signature
}

// Who shows token after token is held back, alone: neither others nor what else the process asks the API wait for it.
func TestCallersAreHeldBackOneByOne(t *testing.T) {
	c := newCluster(t)
	c.namespace("mesh", nil)
	c.serviceAccount("mesh", "ztunnel")
	zt := c.pod("mesh", "zt", "n1", as("ztunnel"))
	tokens := NewTokens(c.client, c.watchAll(), []string{"mesh/ztunnel"})
	good := c.token("mesh/ztunnel", zt, TokenAudience)
	for name, addresses := range map[string][2]string{
		"IPv4": {"10.0.0.1", "10.0.0.2"}, "IPv6": {"fd00:1::1", "fd00:2::1"},
	} {
		t.Run(name, func(t *testing.T) {
			hostile := calledFrom(t, addresses[0])
			exhausted := 0
			for i := range 10 * reviewBurst {
				if _, err := tokens.Admit(hostile, forged(good, i)); err == nil {
					t.Fatal("a forged token was admitted")
				} else if status.Code(err) == codes.ResourceExhausted {
					exhausted++
				}
			}
			if exhausted == 0 {
				t.Errorf("none of %d tokens of one caller was held back", 10*reviewBurst)
			}
			if node, err := tokens.Admit(calledFrom(t, addresses[1]), good); err != nil || node != "n1" {
				t.Errorf("another caller: node %q, %v; want n1", node, err)
			}
			if _, err := tokens.Admit(hostile, good); err != nil {
				t.Errorf("a token that is known to be good: %v", err) // nobody has to be asked
			}
			for i := range 10 * reviewBurst {
				_, _ = tokens.Admit(hostile, forged(good, -1-i))
			}
			tokens.good = cache.NewLRUExpireCache(maxReviews) // a minute later
			if _, err := tokens.Admit(hostile, good); err != nil {
				t.Errorf("a token that was good, of an address that shows bad ones: %v", err)
			}
		})
	}
}

func TestAddressesOfOneCaller(t *testing.T) {
	of := func(address string) netip.Prefix { return callerOf(calledFrom(t, address)) }
	if of("fd00:1::1") != of("fd00:1::2") || of("10.0.0.1") != of("::ffff:10.0.0.1") {
		t.Error("addresses of the same /64, or the same in two forms, are two callers")
	}
	if of("10.0.0.1") == of("10.0.0.2") || of("fd00:1::1") == of("fd00:1:0:1::1") {
		t.Error("two callers are taken for one")
	}
}

// The API is not asked about tokens that cannot be good by their own word.
func TestTokensThatNobodyIsAskedAbout(t *testing.T) {
	claims := func(sub, aud string, exp time.Time) string {
		return "e30." + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"sub":%q,"aud":%s,"exp":%d}`, sub, aud, exp.Unix())) + ".c2ln"
	}
	soon, past := time.Now().Add(time.Hour), time.Now().Add(-time.Hour)
	const zt, ours = "system:serviceaccount:mesh:ztunnel", `["istio-ca"]`
	for name, test := range map[string]struct{ token, refused string }{
		"good":               {claims(zt, ours, soon), ""},
		"one audience":       {claims(zt, `"istio-ca"`, soon), ""},
		"one of audiences":   {claims(zt, `["api","istio-ca"]`, soon), ""},
		"no token":           {"x", "no service account token"},
		"of two parts":       {"e30.e30", "no service account token"},
		"no base64":          {"e30.%.e30", "no service account token"},
		"no JSON":            {"e30." + base64.RawURLEncoding.EncodeToString([]byte("{")) + ".e30", "no service account token"},
		"too long":           {claims(zt, ours, soon) + strings.Repeat("A", maxToken), "no service account token"},
		"another account":    {claims("system:serviceaccount:mesh:other", ours, soon), "none of the node proxies'"},
		"a user":             {claims("mesh/ztunnel", ours, soon), "none of the node proxies'"},
		"another audience":   {claims(zt, `["api"]`, soon), "audience"},
		"no audience":        {claims(zt, `null`, soon), "audience"},
		"audience, a number": {claims(zt, `7`, soon), "audience"},
		"expired":            {claims(zt, ours, past), "expired"},
	} {
		err := checkClaims(test.token, []string{"mesh/ztunnel"})
		if (err == nil) != (test.refused == "") || err != nil && !strings.Contains(err.Error(), test.refused) {
			t.Errorf("%s: %v, want %q", name, err, test.refused)
		}
	}
}
