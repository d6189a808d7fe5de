// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"cmp"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"slices"
	"time"
)

// CertState is one identity in the config dump; the keys are the reference proxy's.
type CertState struct {
	Identity string `json:"identity"`
	// State is "Initializing", "Available" or "Unavailable: why".
	State     string     `json:"state"`
	CertChain []CertDump `json:"certChain"`
	RootCerts []CertDump `json:"rootCerts"`
}

// CertDump is one certificate in the config dump.
type CertDump struct {
	PEM            string `json:"pem"` // base64 of the PEM text
	SerialNumber   string `json:"serialNumber"`
	ValidFrom      string `json:"validFrom"`
	ExpirationTime string `json:"expirationTime"`
}

// Snapshot lists all identities by name, never a key.
func (m *Manager) Snapshot() []CertState {
	m.mu.Lock()
	defer m.mu.Unlock()
	states := make([]CertState, 0, len(m.entries))
	for _, e := range m.entries {
		states = append(states, e.dump(time.Now()))
	}
	slices.SortFunc(states, func(a, b CertState) int { return cmp.Compare(a.Identity, b.Identity) })
	return states
}

func (e *entry) dump(now time.Time) CertState {
	s := CertState{Identity: e.id.String(), State: "Initializing", CertChain: []CertDump{}, RootCerts: []CertDump{}}
	if e.bundle != nil && !e.bundle.Expired(now) {
		s.State = "Available"
	} else if e.err != nil {
		s.State = "Unavailable: " + e.err.Error()
	}
	if e.bundle == nil {
		return s
	}
	for _, der := range e.bundle.Cert.Certificate {
		if cert, err := x509.ParseCertificate(der); err == nil {
			s.CertChain = append(s.CertChain, dumpCert(cert))
		}
	}
	for _, root := range e.bundle.RootCerts {
		s.RootCerts = append(s.RootCerts, dumpCert(root))
	}
	return s
}

func dumpCert(cert *x509.Certificate) CertDump {
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	return CertDump{
		PEM:            base64.StdEncoding.EncodeToString(text),
		SerialNumber:   cert.SerialNumber.String(),
		ValidFrom:      stamp(cert.NotBefore),
		ExpirationTime: stamp(cert.NotAfter),
	}
}
