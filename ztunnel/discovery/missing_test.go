// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"bytes"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/sluice-mesh/sluice/internal/workloadapi"
)

func onNode(node string, policies ...string) func(*Workload) {
	return func(w *Workload) { w.Node, w.Policies = node, policies }
}

func TestMissingPolicies(t *testing.T) {
	s := NewStore()
	s.Apply(Update{
		Policies: []*Policy{{Namespace: "shop", Name: "known", Scope: PolicyWorkload}},
		Workloads: []*Workload{
			pod("b", "10.0.0.2", onNode("node1", "shop/gone", "shop/known")), pod("a", "10.0.0.1", onNode("node1", "shop/gone", "shop/lost")),
			pod("c", "10.0.0.3", onNode("node1", "shop/known")), pod("d", "10.0.0.4", onNode("node2", "shop/elsewhere")),
		},
	})
	want := map[string][]string{"shop/gone": {"Kubernetes//Pod/shop/a", "Kubernetes//Pod/shop/b"}, "shop/lost": {"Kubernetes//Pod/shop/a"}}
	if got := s.MissingPolicies("node1"); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// logLines collects a log without times.
type logLines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// take returns the lines since it was last called, those about policies only.
func (l *logLines) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var lines []string
	for line := range strings.Lines(l.buf.String()) {
		if strings.Contains(line, "policies") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	l.buf.Reset()
	return strings.Join(lines, "\n")
}

func (l *logLines) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

const missingLine = `level=WARN msg="workloads of this node name policies that are unknown; connections are decided without them" `

func TestMissingPoliciesAreLoggedOncePerChange(t *testing.T) {
	var lines logLines
	h := start(t, func(c *Config) { c.Logger = lines.logger() })
	s := h.accept(t)
	s.subscribed(t)
	named := func(name, node string, policies ...string) *workloadapi.Workload {
		w := podMessage(name, "10.0.0.1")
		w.Node, w.AuthorizationPolicies = node, policies
		return w
	}
	wantLog := func(when, want string) {
		t.Helper()
		// The answer of an exchange leaves before the log line: one more has been preceded by it.
		s.wantACK(t, response(AddressType, "fence"))
		if got := lines.take(); got != want {
			t.Errorf("%s: got log\n%s\nwant\n%s", when, got, want)
		}
	}
	s.wantACK(t, response(AddressType, "n1", workloadResource("1", named("a", "node1", "shop/p"))))
	wantLog("policies not answered yet", "")
	s.wantACK(t, response(AuthorizationType, "n2"))
	wantLog("first", missingLine+`policies=shop/p workloads=c1//Pod/shop/a`)
	s.wantACK(t, response(AddressType, "n3", workloadResource("1", named("far", "node2", "shop/other"))))
	wantLog("of another node", "")
	s.wantACK(t, response(AddressType, "n4", workloadResource("2", named("b", "node1", "shop/p", "shop/q"))))
	wantLog("one more", missingLine+`policies="shop/p, shop/q" workloads="c1//Pod/shop/a, c1//Pod/shop/b"`)
	r := response(AddressType, "n5")
	r.RemovedResources = []string{"c1//Pod/shop/b"}
	s.wantACK(t, r)
	wantLog("one less", missingLine+`policies=shop/p workloads=c1//Pod/shop/a`)
	s.wantACK(t, response(AuthorizationType, "n6", policyResource("1", policyMessage("p"))))
	wantLog("resolved", `level=INFO msg="all policies that workloads of this node name are known again"`)
	r = response(AuthorizationType, "n7")
	r.RemovedResources = []string{"shop/p"}
	s.wantACK(t, r)
	wantLog("gone", missingLine+`policies=shop/p workloads=c1//Pod/shop/a`)
	var many []string
	for i := range maxMissingNamed + 2 {
		many = append(many, fmt.Sprintf("shop/%02d", i))
	}
	s.wantACK(t, response(AddressType, "n8", workloadResource("3", named("a", "node1", many...))))
	wantLog("many", missingLine+`policies="shop/00, shop/01, shop/02, shop/03, shop/04, shop/05, shop/06, shop/07, shop/08, shop/09 and 2 more" workloads=c1//Pod/shop/a`)
}
