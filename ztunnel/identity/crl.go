// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// maxCRLBytes bounds the file: a list of a million certificates has about 40 MB.
const maxCRLBytes = 128 << 20

// CRL is a file of certificate revocation lists, PEM, which is followed as it changes. Safe for concurrent use; nil is a
// CRL that revokes nothing.
//
// A list counts for certificates of the issuer that signed it. Issuers are the roots and intermediates that came with our
// certificates, and those of the peer's chain that lead to one of them. What no list speaks of passes, and so does everything of an issuer
// without a list: ambient section 4.1. A list that is past its next update still counts.
type CRL struct {
	path string
	log  *slog.Logger
	// settle is how long changes of the folder are gathered.
	settle time.Duration

	mu       sync.Mutex // guards what follows, not what it points to
	text     []byte
	lists    []*revocations
	issuers  []*x509.Certificate
	watchers map[int]func()
	watched  int // numbers them
}

// OpenCRL reads the file; one that cannot be read or parsed is an error. It is read again by [CRL.Watch] or [CRL.Reload].
func OpenCRL(path string, log *slog.Logger) (*CRL, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("CRL file %q: %w", path, err)
	}
	c := &CRL{path: absolute, log: log, settle: crlSettle, watchers: map[int]func(){}}
	if err := c.Reload(); err != nil {
		return nil, err
	}
	return c, nil
}

// Reload reads the file now. On error, which names the file, the lists stay as they were.
func (c *CRL) Reload() error {
	text, err := readLimited(c.path)
	if err != nil {
		return fmt.Errorf("CRL file: %w", err)
	}
	c.mu.Lock()
	same := c.text != nil && bytes.Equal(text, c.text)
	c.mu.Unlock()
	if same {
		return nil
	}
	lists, err := parseCRLs(text)
	if err != nil {
		return fmt.Errorf("CRL file %q: %w", c.path, err)
	}
	c.mu.Lock()
	c.text, c.lists = text, lists
	watchers, issuers := slices.Collect(maps.Values(c.watchers)), c.issuers
	c.mu.Unlock()
	c.logStrangers(lists, issuers)
	revoked := 0
	for _, list := range lists {
		revoked += len(list.when)
	}
	c.log.Info("CRL file is read", "path", c.path, "lists", len(lists), "revoked", revoked)
	var all sync.WaitGroup
	for _, changed := range watchers {
		all.Go(changed)
	}
	all.Wait()
	return nil
}

func readLimited(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxCRLBytes || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%q is not a file of at most %d bytes", path, maxCRLBytes)
	}
	return os.ReadFile(path)
}

// OnChange has changed called after each change of the lists until stop, in a goroutine of its own, so that none waits for
// another. The lists are not read again before all have returned. A call that is under way may outlast stop.
func (c *CRL) OnChange(changed func()) (stop func()) {
	if c == nil {
		return func() {}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watched++
	number := c.watched
	c.watchers[number] = changed
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.watchers, number)
	}
}

// Check returns a [*RevokedError] if a certificate of a peer's chain, leaf first, is revoked. The chain was verified before.
func (c *CRL) Check(chain []*x509.Certificate) error {
	if c == nil || len(chain) == 0 {
		return nil
	}
	c.mu.Lock()
	lists, issuers := c.lists, c.issuers
	c.mu.Unlock()
	all := sync.OnceValue(func() []*x509.Certificate { return issuersOf(chain, issuers) })
	for i, cert := range chain {
		for _, list := range lists {
			// Who is on no list costs a look into a map, and no signature is verified.
			if since, listed := list.names(cert); listed && list.revokes(cert, all()) {
				return &RevokedError{Peer: uris(chain[0]), Intermediate: i > 0, Serial: cert.SerialNumber, Since: since}
			}
		}
	}
	return nil
}

// learn takes the issuers that came with a certificate of our own.
func (c *CRL) learn(certs []*x509.Certificate) {
	if c == nil {
		return
	}
	if lists, issuers, more := c.add(certs); more {
		c.logStrangers(lists, issuers)
	}
}

func (c *CRL) add(certs []*x509.Certificate) (lists []*revocations, issuers []*x509.Certificate, more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := len(c.issuers)
	for _, cert := range certs {
		if !slices.ContainsFunc(c.issuers, cert.Equal) {
			// A new slice: Check reads the old one without the lock.
			c.issuers = append(slices.Clip(c.issuers), cert)
		}
	}
	return c.lists, c.issuers, len(c.issuers) > known
}

// logStrangers warns of lists that are of no issuer known so far. They count if a peer's chain brings the issuer. It hashes
// the lists, so it is for those who hold no lock.
func (c *CRL) logStrangers(lists []*revocations, issuers []*x509.Certificate) {
	if len(issuers) == 0 {
		return // too early to tell
	}
	for _, list := range lists {
		if !slices.ContainsFunc(issuers, list.by) {
			c.log.Warn("CRL is of an issuer that is not known, or not signed by it: ignored",
				"path", c.path, "issuer", list.list.Issuer.String())
		}
	}
}
