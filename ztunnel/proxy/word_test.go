// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/hbone"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// TestWordOfTheRefusedIsNotHeard: a client that policy denies names no series of the metrics, whatever it says of itself.
func TestWordOfTheRefusedIsNotHeard(t *testing.T) {
	w := newWorld(t)
	echo := w.server.Echo(t, "server", netip.AddrPortFrom(w.server.Addr4, 7000).String())
	ask := func(workload string) error {
		return w.connectAs(clientSPIFFE, netip.AddrPortFrom(w.server.Addr4, hbonePort),
			hbone.Header{Name: networkHeader, Value: "elsewhere"},
			hbone.Header{Name: "baggage", Value: "k8s.deployment.name=" + workload})(echo.Addr.String())
	}
	if err := ask("welcome"); err != nil {
		t.Fatal(err)
	}
	w.store.Apply(discovery.Update{Policies: []*discovery.Policy{{Namespace: "default", Name: "nobody", Scope: discovery.PolicyNamespace}}})
	if err := ask("intruder"); err == nil {
		t.Fatal("not refused")
	}
	recorder := httptest.NewRecorder()
	telemetry.StatsHandler(w.proxy.metrics).ServeHTTP(recorder, httptest.NewRequest("GET", "/metrics", nil))
	text := recorder.Body.String()
	if !strings.Contains(text, `source_workload="welcome"`) || strings.Contains(text, "intruder") {
		t.Error("want the word of the client that was let in, and of no other")
	}
	w.wantLine("connection complete", `src.identity="`+clientSPIFFE, `policy`)
}
