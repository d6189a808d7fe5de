// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// Annotations of a pod that change how it is captured. Each takes the place of the node's setting.
const (
	annotationDNS           = "ambient.istio.io/dns-capture"
	annotationBypassInbound = "ambient.istio.io/bypass-inbound-capture"
	annotationCapture       = "sluice.dev/capture"
	annotationExcludeCIDRs  = "sluice.dev/exclude-outbound-cidrs"
	annotationExcludePorts  = "sluice.dev/exclude-outbound-ports"
)

// Settings say how a pod is captured.
type Settings struct {
	// CaptureAll captures also what goes to addresses outside the mesh.
	CaptureAll bool `json:"captureAll,omitempty"`
	// CaptureDNS hands DNS queries to ztunnel's resolver.
	CaptureDNS bool `json:"captureDNS,omitempty"`
	// BypassInbound leaves connections to the pod to the app.
	BypassInbound bool `json:"bypassInbound,omitempty"`
	// ExcludeCIDRs and ExcludePorts are destinations that are not captured.
	ExcludeCIDRs []netip.Prefix `json:"excludeCIDRs,omitempty"`
	ExcludePorts []uint16       `json:"excludePorts,omitempty"`
}

// Equal reports whether both say the same.
func (s Settings) Equal(o Settings) bool {
	return s.CaptureAll == o.CaptureAll && s.CaptureDNS == o.CaptureDNS && s.BypassInbound == o.BypassInbound &&
		slices.Equal(s.ExcludeCIDRs, o.ExcludeCIDRs) && slices.Equal(s.ExcludePorts, o.ExcludePorts)
}

// tell puts the settings into a decision.
func (s Settings) tell(d *nodeapi.Decision) {
	d.CaptureAll, d.CaptureDNS, d.BypassInbound = s.CaptureAll, s.CaptureDNS, s.BypassInbound
	d.ExcludeCIDRs, d.ExcludePorts = s.ExcludeCIDRs, s.ExcludePorts
}

// settingsOf are those that the pod's annotations make of the node's. The error names every bad annotation; what is
// returned with it has the value in its place that lets the least pass.
func settingsOf(node Settings, annotations map[string]string) (Settings, error) {
	s := node
	var errs []error
	for _, a := range []struct {
		name string
		set  func(value string) error
	}{
		{annotationCapture, func(v string) (err error) { s.CaptureAll, err = parseCapture(v); return err }},
		{annotationDNS, func(v string) (err error) { s.CaptureDNS, err = parseBool(v); return err }},
		{annotationBypassInbound, func(v string) (err error) { s.BypassInbound, err = parseBool(v); return err }},
		{annotationExcludeCIDRs, func(v string) (err error) { s.ExcludeCIDRs, err = ParseCIDRs(v); return err }},
		{annotationExcludePorts, func(v string) (err error) { s.ExcludePorts, err = ParsePorts(v); return err }},
	} {
		if value, ok := annotations[a.name]; ok {
			if err := a.set(value); err != nil {
				errs = append(errs, fmt.Errorf("annotation %s: %w", a.name, err))
			}
		}
	}
	return s, errors.Join(errs...)
}

func parseCapture(v string) (all bool, err error) {
	switch v {
	case "all":
		return true, nil
	case "mesh":
		return false, nil
	}
	return true, fmt.Errorf("%s is neither \"mesh\" nor \"all\"", quote(v))
}

func parseBool(v string) (bool, error) {
	switch v {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("%s is neither \"true\" nor \"false\"", quote(v))
}

// ParseCIDRs reads a comma-separated list of CIDRs and addresses; the list is in order and without doubles. An empty one
// is none.
func ParseCIDRs(list string) ([]netip.Prefix, error) {
	cidrs, err := parseList(list, "a CIDR or an address such as 10.0.0.0/8 or 2001:db8::1, with nothing behind its length", func(word string) (netip.Prefix, bool) {
		p, err := netip.ParsePrefix(word)
		if err != nil {
			a, aerr := netip.ParseAddr(word)
			if aerr != nil || a.Zone() != "" {
				return p, false
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		// With bits behind its length it is more likely a mistyped length than meant.
		return p, p == p.Masked() && !p.Addr().Is4In6()
	})
	slices.SortFunc(cidrs, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	return slices.Compact(cidrs), err
}

// ParsePorts reads a comma-separated list of ports; the list is in order and without doubles. An empty one is none.
func ParsePorts(list string) ([]uint16, error) {
	ports, err := parseList(list, "a port from 1 to 65535", func(word string) (uint16, bool) {
		n, err := strconv.ParseUint(word, 10, 16)
		return uint16(n), err == nil && n > 0
	})
	slices.Sort(ports)
	return slices.Compact(ports), err
}

func parseList[T any](list, allowed string, parse func(word string) (T, bool)) ([]T, error) {
	if strings.TrimSpace(list) == "" {
		return nil, nil
	}
	var all []T
	for word := range strings.SplitSeq(list, ",") {
		v, ok := parse(strings.TrimSpace(word))
		if !ok {
			return nil, fmt.Errorf("%s is not %s", quote(word), allowed)
		}
		all = append(all, v)
	}
	if len(all) > bpf.MaxExclusions {
		return nil, fmt.Errorf("has %d entries, at most %d are allowed", len(all), bpf.MaxExclusions)
	}
	return all, nil
}

// quote shows a bad value, which may be as long as an annotation may.
func quote(v string) string {
	const most = 64
	if len(v) > most {
		return strconv.Quote(v[:most]) + "..."
	}
	return strconv.Quote(v)
}

// annotationsOf are those in the pod's manifest.
func annotationsOf(s *controlplane.Snapshot, sandbox nodeapi.Pod) map[string]string {
	if m, _ := catalogPod(s, sandbox); m != nil {
		return m.Annotations
	}
	return nil
}
