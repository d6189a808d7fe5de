// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
)

func TestConnectHeaders(t *testing.T) {
	src := pod("client", "10.0.0.1", func(w *discovery.Workload) {
		w.CanonicalRevision = "v2"
		w.Locality = discovery.Locality{Region: "r", Zone: "z"}
		w.WorkloadType = 0
	})
	got := map[string]string{}
	for _, h := range connectHeaders(netip.MustParseAddrPort("10.0.0.1:4711"), src, service("web", "", nil)) {
		got[h.Name] = h.Value
	}
	for name, want := range map[string]string{
		"baggage":     `^k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=client,service.name=client,service.version=v2,cloud.region=r,cloud.availability_zone=z$`,
		"forwarded":   `^for="10.0.0.1:4711";host=web.default.svc.cluster.local$`,
		"traceparent": `^00-[0-9a-f]{32}-[0-9a-f]{16}-00$`,
	} {
		if !regexp.MustCompile(want).MatchString(got[name]) {
			t.Errorf("%s: got %q, want %s", name, got[name], want)
		}
	}
	if host := forwardedHost(got["forwarded"]); host != "web.default.svc.cluster.local" {
		t.Errorf("host of %q: got %q", got["forwarded"], host)
	}
	for _, none := range []string{"", "for=x", `for="[::1]:80"`} {
		if host := forwardedHost(none); host != "" {
			t.Errorf("host of %q: got %q, want none", none, host)
		}
	}
}

func TestAnswersSayWhoGivesThemUnlessSwitchedOff(t *testing.T) {
	self := &discovery.Workload{Namespace: "shop"}
	on, off := podProxy{Proxy: &Proxy{}}, podProxy{Proxy: &Proxy{Config: Config{NoResponseBaggage: true}}}
	if got := on.answerHeaders(self); len(got) != 1 || got[0].Name != "baggage" {
		t.Errorf("on: got %v", got)
	}
	if got := off.answerHeaders(self); len(got) != 0 {
		t.Errorf("off: got %v", got)
	}
}

func TestBaggageRoundTrip(t *testing.T) {
	want := pod("web", "10.0.0.1", func(w *discovery.Workload) {
		w.Locality, w.CanonicalRevision = discovery.Locality{Region: "r1", Zone: "z1"}, "v1"
	})
	got := fromBaggage(baggage(want))
	if peerOf(got, false) != peerOf(want, false) {
		t.Errorf("got %+v, want %+v", peerOf(got, false), peerOf(want, false))
	}
	if got := fromBaggage("k8s.job.name= j\xff,unknown=x,,=,service.name"); got.WorkloadName != " j" || got.CanonicalName != "" {
		t.Errorf("strange baggage: got %+v", got)
	}
	if got := fromBaggage("k8s.pod.name=" + strings.Repeat("é", 300)); len(got.Name) != 252 {
		t.Errorf("a name of 600 bytes: got %d bytes, want 252", len(got.Name))
	}
	if fromBaggage("") != nil {
		t.Error("no baggage is somebody")
	}
}
