// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"strings"
	"testing"
)

func TestParseIdentity(t *testing.T) {
	for _, test := range []struct {
		uri  string
		want Identity
		bad  string // part of the error
	}{
		{uri: "spiffe://cluster.local/ns/shop/sa/cart", want: Identity{"cluster.local", "shop", "cart"}},
		{uri: "spiffe://Example.ORG/ns/a-b/sa/c.d_e", want: Identity{"Example.ORG", "a-b", "c.d_e"}},
		{uri: "", bad: "want spiffe://"},
		{uri: "cluster.local/ns/shop/sa/cart", bad: "want spiffe://"},
		{uri: "SPIFFE://cluster.local/ns/shop/sa/cart", bad: "want spiffe://"},
		{uri: "https://cluster.local/ns/shop/sa/cart", bad: "want spiffe://"},
		{uri: "spiffe://cluster.local/ns/shop/sa/cart/", bad: "want spiffe://"},
		{uri: "spiffe://cluster.local/ns/shop/sa/cart/x", bad: "want spiffe://"},
		{uri: "spiffe://cluster.local/ns/shop", bad: "want spiffe://"},
		{uri: "spiffe://cluster.local/sa/shop/ns/cart", bad: "want spiffe://"},
		{uri: "spiffe:///ns/shop/sa/cart", bad: "trust domain is empty"},
		{uri: "spiffe://td/ns//sa/cart", bad: "namespace is empty"},
		{uri: "spiffe://td/ns/shop/sa/", bad: "service account is empty"},
		{uri: "spiffe://td/ns/shop/sa/cart?x=1", bad: "does not allow"},
		{uri: "spiffe://td/ns/shop/sa/cart#x", bad: "does not allow"},
		{uri: "spiffe://user@td/ns/shop/sa/cart", bad: "does not allow"},
		{uri: "spiffe://td/ns/sh%2Fop/sa/cart", bad: "does not allow"},
	} {
		got, err := ParseIdentity(test.uri)
		switch {
		case test.bad == "" && (err != nil || got != test.want):
			t.Errorf("ParseIdentity(%q) = %+v, %v, want %+v", test.uri, got, err, test.want)
		case test.bad != "" && (err == nil || !strings.Contains(err.Error(), test.bad)):
			t.Errorf("ParseIdentity(%q) = %+v, %v, want error with %q", test.uri, got, err, test.bad)
		case test.bad == "" && got.String() != test.uri:
			t.Errorf("String() = %q, want %q", got, test.uri)
		}
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add("spiffe://cluster.local/ns/shop/sa/cart")
	f.Add("spiffe://td/ns/a/sa/b?c")
	f.Fuzz(func(t *testing.T, uri string) {
		id, err := ParseIdentity(uri)
		if err != nil {
			return
		}
		if id.String() != uri {
			t.Errorf("%q reads as %+v, which writes as %q", uri, id, id)
		}
		if id.Principal() != strings.TrimPrefix(uri, "spiffe://") {
			t.Errorf("principal of %q is %q", uri, id.Principal())
		}
	})
}
