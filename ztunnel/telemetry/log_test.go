// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// denied is a line with every field.
func denied() *Access {
	return &Access{
		Direction: Inbound,
		Src:       Endpoint{Addr: netip.MustParseAddrPort("10.0.0.1:4711"), Workload: "client", Namespace: "default", Identity: "spiffe://cluster.local/ns/default/sa/client", Cluster: "Kubernetes"},
		Dst:       Endpoint{Addr: netip.MustParseAddrPort("10.0.0.2:15008"), Workload: "server", Namespace: "default", Identity: "spiffe://cluster.local/ns/default/sa/server", Cluster: "Kubernetes"},
		HBONEAddr: "10.0.0.2:80", Service: "web.default.svc.cluster.local", Sent: 1, Received: 2, Duration: 12 * time.Millisecond,
		Verdict: "refused-policy", Policy: "default/deny", Err: errors.New(`connection closed due to policy rejection: explicitly denied by: default/deny`),
	}
}

func write(t *testing.T, f Format, level string, do func(*AccessLog)) string {
	t.Helper()
	levels, err := ParseLevels(level)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	do(NewAccessLog(NewLogger(&b, f, levels)))
	return b.String()
}

func TestAccessLogText(t *testing.T) {
	line := write(t, Text, "info", func(l *AccessLog) { l.Complete(denied()) })
	_, got, _ := strings.Cut(line, "\t")
	want := "error\taccess\tconnection complete\t" + strings.Join([]string{
		`src.addr=10.0.0.1:4711`, `src.workload="client"`, `src.namespace="default"`, `src.identity="spiffe://cluster.local/ns/default/sa/client"`, `src.cluster="Kubernetes"`,
		`dst.addr=10.0.0.2:15008`, `dst.hbone_addr="10.0.0.2:80"`, `dst.service="web.default.svc.cluster.local"`, `dst.workload="server"`, `dst.namespace="default"`,
		`dst.identity="spiffe://cluster.local/ns/default/sa/server"`, `dst.cluster="Kubernetes"`, `direction="inbound"`, `bytes_sent=1`, `bytes_recv=2`, `duration="12ms"`,
		`verdict="refused-policy"`, `policy="default/deny"`, `error="connection closed due to policy rejection: explicitly denied by: default/deny"`,
	}, " ") + "\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("line (-want +got):\n%s", diff)
	}
}

func TestAccessLogJSON(t *testing.T) {
	line := write(t, JSON, "info", func(l *AccessLog) { l.Complete(denied()) })
	if !strings.HasPrefix(line, `{"level":"error","time":"`) {
		t.Errorf("got %s, want level and time first", line)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		t.Fatal(err)
	}
	delete(got, "time")
	want := map[string]any{
		"level": "error", "scope": "access", "message": "connection complete",
		"src.addr": "10.0.0.1:4711", "src.workload": "client", "src.namespace": "default", "src.identity": "spiffe://cluster.local/ns/default/sa/client", "src.cluster": "Kubernetes",
		"dst.addr": "10.0.0.2:15008", "dst.hbone_addr": "10.0.0.2:80", "dst.service": "web.default.svc.cluster.local", "dst.workload": "server", "dst.namespace": "default",
		"dst.identity": "spiffe://cluster.local/ns/default/sa/server", "dst.cluster": "Kubernetes", "direction": "inbound", "bytes_sent": 1.0, "bytes_recv": 2.0, "duration": "12ms",
		"verdict": "refused-policy", "policy": "default/deny", "error": "connection closed due to policy rejection: explicitly denied by: default/deny",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("line (-want +got):\n%s", diff)
	}
}

func TestAbsentFieldsAreLeftOut(t *testing.T) {
	a := &Access{Direction: Outbound, Src: Endpoint{Addr: netip.MustParseAddrPort("10.0.0.1:1")}, Dst: Endpoint{Addr: netip.MustParseAddrPort("[fd00::2]:80")}, Err: errors.New("unknown")}
	line := write(t, Text, "info", func(l *AccessLog) { l.Failed(a) })
	if _, got, _ := strings.Cut(line, "\t"); got != "warn\taccess\tconnection failed\tsrc.addr=10.0.0.1:1 dst.addr=[fd00::2]:80 direction=\"outbound\" error=\"unknown\"\n" {
		t.Errorf("got %q", got)
	}
}

func TestForeignTextCannotForgeLines(t *testing.T) {
	a := &Access{HBONEAddr: "x\" verdict=\"mtls\"\ninfo\taccess"}
	line := write(t, Text, "info", func(l *AccessLog) { l.Complete(a) })
	if strings.Count(line, "\n") != 1 || strings.Contains(line, ` verdict="mtls"`) {
		t.Errorf("got %q, want one line without the forged field", line)
	}
}

func TestLevelsByScope(t *testing.T) {
	opened := func(l *AccessLog) { l.Opened(denied()) }
	for level, want := range map[string]bool{"info": false, "debug": true, "info,access=debug": true, "debug,access=off": false, "info,other=debug": false} {
		if got := write(t, Text, level, opened) != ""; got != want {
			t.Errorf("level %q: debug line of scope access written: got %v, want %v", level, got, want)
		}
	}
	levels, err := ParseLevels("info")
	if err != nil {
		t.Fatal(err)
	}
	if err := levels.Update("access=debug,loud,xds=quiet"); err == nil || !strings.Contains(err.Error(), `"loud"`) || !strings.Contains(err.Error(), `"quiet"`) {
		t.Errorf("got %v, want both mistakes", err)
	}
	if err := levels.Update("access=debug"); err != nil || levels.String() != "info,access=debug" {
		t.Errorf("got %s, %v", levels, err)
	}
	levels.Reset()
	if levels.String() != "info" {
		t.Errorf("after reset: got %s, want info", levels)
	}
}
