// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

func TestAnnotationsTakeThePlaceOfTheNodesSettings(t *testing.T) {
	cidr := netip.MustParsePrefix
	node := Settings{CaptureAll: true, CaptureDNS: true, ExcludeCIDRs: []netip.Prefix{cidr("192.0.2.0/24")}, ExcludePorts: []uint16{25}}
	for name, tc := range map[string]struct {
		annotations map[string]string
		want        Settings
	}{
		"none":  {nil, node},
		"other": {map[string]string{"sluice.dev/else": "x"}, node},
		"all of them": {map[string]string{
			annotationCapture: "mesh", annotationDNS: "false", annotationBypassInbound: "true",
			annotationExcludeCIDRs: " 2001:db8::1, 10.0.0.0/8 ,10.0.0.0/8", annotationExcludePorts: "443, 22,22",
		}, Settings{BypassInbound: true, ExcludeCIDRs: []netip.Prefix{cidr("10.0.0.0/8"), cidr("2001:db8::1/128")}, ExcludePorts: []uint16{22, 443}}},
		"empty lists": {map[string]string{annotationExcludeCIDRs: "", annotationExcludePorts: " "}, Settings{CaptureAll: true, CaptureDNS: true}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := settingsOf(node, tc.annotations)
			if err != nil || !got.Equal(tc.want) {
				t.Errorf("got %+v, %v, want %+v", got, err, tc.want)
			}
		})
	}
}

func TestBadAnnotationIsNamedWithWhatIsAllowed(t *testing.T) {
	for _, tc := range []struct{ annotation, value, want string }{
		{annotationCapture, "none", `"none" is neither "mesh" nor "all"`},
		{annotationDNS, "yes", `"yes" is neither "true" nor "false"`},
		{annotationBypassInbound, "", `"" is neither "true" nor "false"`},
		{annotationExcludeCIDRs, "10.0.0.0/33", `"10.0.0.0/33" is not a CIDR or an address such as`},
		{annotationExcludeCIDRs, "10.0.0.0/8,", `"" is not a CIDR or an address such as`},
		{annotationExcludeCIDRs, "::ffff:10.0.0.0/104", "is not a CIDR"},
		{annotationExcludeCIDRs, "10.1.2.3/2", `"10.1.2.3/2" is not a CIDR or an address`},
		{annotationExcludeCIDRs, "fe80::1%eth0", "is not a CIDR"},
		{annotationExcludePorts, "http", `"http" is not a port from 1 to 65535`},
		{annotationExcludePorts, "0", `"0" is not a port`},
		{annotationExcludePorts, "65536", `"65536" is not a port`},
		{annotationExcludePorts, strings.TrimSuffix(strings.Repeat("1,", bpf.MaxExclusions+1), ","), fmt.Sprintf("at most %d are allowed", bpf.MaxExclusions)},
	} {
		_, err := settingsOf(Settings{}, map[string]string{tc.annotation: tc.value, annotationExcludePorts + "x": "ignored"})
		if err == nil || !strings.Contains(err.Error(), "annotation "+tc.annotation+": ") || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s=%q: got %v, want %q", tc.annotation, tc.value, err, tc.want)
		}
	}
}

// annotate writes the pod's manifest with one annotation.
func (s *sandbox) annotate(annotation, value string) {
	s.l.t.Helper()
	s.l.manifest("pod-"+s.api.Name, fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata:\n  name: %s\n  namespace: %s\n  annotations: {%q: %q}\n",
		s.api.Name, s.api.Namespace, annotation, value))
}

// wantSettings waits until status shows the settings and, if not empty, the problem.
func (s *sandbox) wantSettings(want Settings, problem string) {
	s.l.t.Helper()
	s.l.eventually(func() error {
		st := s.status()
		if st.Phase != string(served) || !st.Settings.Equal(want) || !strings.Contains(st.Problem, problem) || problem == "" && st.Problem != "" {
			return fmt.Errorf("%s, settings %+v, problem %q, want %+v, %q", st.Phase, st.Settings, st.Problem, want, problem)
		}
		return nil
	})
}

func TestAnnotationsOfRunningPodAreFollowed(t *testing.T) {
	l := newLab(t, nil)
	l.ztunnel("z")
	s := l.pod("mesh", "p").mustAdd()
	s.wantSettings(Settings{}, "")
	s.annotate(annotationCapture, "all")
	s.wantSettings(Settings{CaptureAll: true}, "")
	s.annotate(annotationCapture, "everything")
	s.wantSettings(Settings{CaptureAll: true}, `annotation sluice.dev/capture: "everything" is neither`)
	l.restart()
	s.wantSettings(Settings{CaptureAll: true}, `annotation sluice.dev/capture: "everything" is neither`)
	if d, err := s.ask(nodeapi.VerbDecide); err != nil || !d.Decision.CaptureAll {
		t.Errorf("ADD for a second network: got %+v, %v, want the last good settings", d, err)
	}
	s.annotate(annotationCapture, "mesh")
	s.wantSettings(Settings{}, "")
	s.annotate(annotationExcludePorts, "53,443")
	s.wantSettings(Settings{ExcludePorts: []uint16{53, 443}}, "")
	s.annotate(annotationExcludeCIDRs, "10.0.0.0/8")
	s.wantSettings(Settings{ExcludeCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, "")
	s.annotate(annotationBypassInbound, "true")
	s.wantSettings(Settings{BypassInbound: true}, "")
}

func TestSettingsAreInForceOnceADDReturns(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Settings.ExcludePorts = []uint16{5432} })
	z := l.ztunnel("z")
	s, peer := l.pod("mesh", "p"), l.pod("plain", "peer")
	s.annotate(annotationExcludeCIDRs, peer.Addr4.String())
	s.mustAdd()
	peer.Echo(t, "peer", "[::]:5432")
	peer.Echo(t, "peer", "[::]:80")
	for addr, passes := range map[netip.AddrPort]bool{
		netip.AddrPortFrom(peer.Addr4, 80): true, netip.AddrPortFrom(peer.Addr6, 80): false, netip.AddrPortFrom(peer.Addr6, 5432): true,
	} {
		if !passes {
			s.wantGreeting(addr, z.name+" outbound")
		} else if got, err := s.AskFrom(addr); err != nil || got.Name != "peer" {
			t.Errorf("%s: got %+v, %v, want the peer itself", addr, got, err)
		}
	}
}

func TestPodWithBadAnnotationDoesNotStart(t *testing.T) {
	l := newLab(t, nil)
	l.ztunnel("z")
	s := l.pod("mesh", "p")
	s.annotate(annotationExcludePorts, "postgres")
	_, err := s.ask(nodeapi.VerbDecide)
	if e := refusal(t, err); e.Code != nodeapi.CodeBadRequest || !strings.Contains(e.Message, `mesh/p belongs into the mesh`) ||
		!strings.Contains(e.Message, `annotation sluice.dev/exclude-outbound-ports: "postgres" is not a port from 1 to 65535`) {
		t.Errorf("decide: got %s: %v", e.Code, e)
	}
	s.nothingLeft()
}

func TestRunningPodWithBadAnnotationIsEnrolledAsTheNodeHasIt(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Settings.CaptureAll = true })
	l.ztunnel("z")
	l.enrolNamespace("late", false)
	s := l.pod("late", "p").mustAdd()
	s.annotate(annotationCapture, "some")
	l.enrolNamespace("late", true)
	s.wantSettings(Settings{CaptureAll: true}, `annotation sluice.dev/capture: "some" is neither`)
}

func TestPodWithoutAddressIsNotLeftOutsideSilently(t *testing.T) {
	l := newLab(t, nil)
	l.ztunnel("z")
	s := l.pod("mesh", "p")
	s.api.Interfaces[0].Addresses = nil
	_, err := s.ask(nodeapi.VerbDecide)
	if e := refusal(t, err); e.Code != nodeapi.CodeBadRequest || !strings.Contains(e.Message, "the pod has no address") {
		t.Errorf("decide: got %s: %v", e.Code, e)
	}
	l.enrolNamespace("late", false)
	s.api.Namespace = "late"
	s.mustAdd()
	l.enrolNamespace("late", true)
	l.eventually(func() error {
		if st := s.status(); st.Phase != string(known) || !strings.Contains(st.Problem, "not enrolled: the pod has no address") {
			return fmt.Errorf("%s, problem %q", st.Phase, st.Problem)
		}
		return nil
	})
}

// TestBadAnnotationsLetTheLeastPass: what is right beside them holds, and the node's wider value does not come back.
func TestBadAnnotationsLetTheLeastPass(t *testing.T) {
	node := Settings{ExcludeCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, BypassInbound: true}
	got, err := settingsOf(node, map[string]string{
		annotationExcludeCIDRs: "", annotationExcludePorts: strings.Repeat("x", 10_000), annotationBypassInbound: "maybe", annotationCapture: "most",
	})
	want := Settings{CaptureAll: true}
	if err == nil || len(err.Error()) > 1000 || !got.Equal(want) {
		t.Errorf("got %+v, %v, want %+v and a short error", got, err, want)
	}
}
