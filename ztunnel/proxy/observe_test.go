// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/ztunnel/identity"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// testCA signs whatever it is asked to.
type testCA struct{ *testutil.CA }

func (ca testCA) Sign(_ context.Context, id identity.Identity, csr string) ([]string, error) {
	block, _ := pem.Decode([]byte(csr))
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	leaf, err := ca.SignCSR(request, id.String(), time.Hour)
	return []string{string(leaf), string(ca.PEM())}, err
}

// logBuffer keeps what a proxy logs, and shows it when the test fails.
type logBuffer struct {
	t  testing.TB
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// lines returns the access log's lines that contain all of parts.
func (l *logBuffer) lines(parts ...string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []string
	for line := range strings.SplitSeq(l.b.String(), "\n") {
		if strings.Contains(line, "\taccess\t") && !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			found = append(found, line)
		}
	}
	return found
}

// wantLine waits for one line of the access log.
func (w *world) wantLine(parts ...string) string {
	w.t.Helper()
	var found []string
	testutil.Eventually(w.t, 5*time.Second, func() error {
		if found = w.proxy.log.lines(parts...); len(found) == 0 {
			return fmt.Errorf("no line with %q in the access log:\n%s", parts, strings.Join(w.proxy.log.lines(), "\n"))
		}
		return nil
	})
	return found[0]
}

// metric is the sum of the series of name that have all labels, each written label="value".
func (p *testProxy) metric(name string, labels ...string) (sum float64) {
	recorder := httptest.NewRecorder()
	telemetry.StatsHandler(p.metrics).ServeHTTP(recorder, httptest.NewRequest("GET", "/metrics", nil))
	body, _ := io.ReadAll(recorder.Body)
	for line := range strings.SplitSeq(string(body), "\n") {
		if !strings.HasPrefix(line, name+"{") || slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(line, l) }) {
			continue
		}
		var value float64
		if _, err := fmt.Sscan(line[strings.LastIndex(line, " ")+1:], &value); err == nil {
			sum += value
		}
	}
	return sum
}
