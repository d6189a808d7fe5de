// SPDX-License-Identifier: Apache-2.0

// Package identity knows who a workload is: SPIFFE names, the certificates that prove them, and their rotation.
//
//	Manager ──Sign──► CAClient ──gRPC──► istiod, or the agent's embedded control plane
//	   ▲
//	   └─ per handshake ─ ServerTLS, ClientTLS ◄─ hbone
package identity

import (
	"fmt"
	"strings"
)

// scheme begins every SPIFFE URI.
const scheme = "spiffe://"

// Identity names a service account of a trust domain. Comparable; the zero value is nobody.
type Identity struct {
	TrustDomain    string
	Namespace      string
	ServiceAccount string
}

// ParseIdentity reads a SPIFFE URI of exactly the form spiffe://TD/ns/NS/sa/SA. The trust domain is taken as it is
// written: no case folding, no aliases.
func ParseIdentity(uri string) (Identity, error) {
	rest, ok := strings.CutPrefix(uri, scheme)
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return Identity{}, fmt.Errorf("identity %q: want spiffe://<trust domain>/ns/<namespace>/sa/<service account>", uri)
	}
	id := Identity{TrustDomain: parts[0], Namespace: parts[2], ServiceAccount: parts[4]}
	if err := id.Validate(); err != nil {
		return Identity{}, fmt.Errorf("identity %q: %w", uri, err)
	}
	return id, nil
}

// Validate returns an error unless every part is a non-empty SPIFFE segment, so that String can be parsed back.
func (id Identity) Validate() error {
	for _, part := range [...]struct{ name, value string }{
		{"trust domain", id.TrustDomain}, {"namespace", id.Namespace}, {"service account", id.ServiceAccount},
	} {
		if part.value == "" {
			return fmt.Errorf("%s is empty", part.name)
		}
		if i := strings.IndexFunc(part.value, notSegment); i >= 0 {
			return fmt.Errorf("%s %q holds a character that SPIFFE does not allow", part.name, part.value)
		}
	}
	return nil
}

// notSegment: SPIFFE-ID, section 2.2: letters, digits, dot, dash and underscore.
func notSegment(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return false
	}
	return r != '.' && r != '-' && r != '_'
}

// String returns the SPIFFE URI.
func (id Identity) String() string {
	return scheme + id.Principal()
}

// Principal is the URI without its scheme, as authorization policies write it.
func (id Identity) Principal() string {
	return id.TrustDomain + "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount
}
