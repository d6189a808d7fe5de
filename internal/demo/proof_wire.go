// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/sluice-mesh/sluice/internal/lab"
)

// requestMarker is in a header of every request; it must never be seen on the wire in clear.
const requestMarker = "sluice-demo-request-93aa02"

// proveWire ends the capture that began before the first request, and looks for text, ports and TLS in it. What the
// pod outside the mesh sends must be found by the very same search.
func proveWire(s *scene, r *report) error {
	for _, server := range []netip.Addr{s.server.Addr4, s.server.Addr6} {
		if a := s.curl(s.legacy, url(server, httpPort, tag()), requestMarker); !a.ok() {
			return fmt.Errorf("legacy -> server: %v", a)
		}
	}
	trace, err := s.capture.Stop()
	if err != nil {
		return err
	}
	mesh := s.meshOf(trace)
	legacy := trace.Between(s.legacy.Addr4, s.legacy.Addr6, s.server.Addr4, s.server.Addr6)
	requests, responses := mesh.Count(requestMarker), mesh.Count(responseMarker)
	r.check(requests == 0 && responses == 0 && mesh.PayloadBytes() > 0, "client <-> server: marker text in clear",
		"request's %d times, response's %d times, in %d segments with %d bytes", requests, responses, len(mesh), mesh.PayloadBytes())
	clear := mesh.Clear(hbonePort)
	r.check(len(clear) == 0, fmt.Sprintf("client <-> server: segments off port %d", hbonePort), "%d", len(clear))
	versions, err := mesh.TLSVersions(hbonePort)
	if err != nil {
		return err
	}
	r.check(len(versions) > 0 && all13(versions), "client <-> server: TLS version", "%s", versionNames(versions))
	requests, responses = legacy.Count(requestMarker), legacy.Count(responseMarker)
	r.check(requests > 0 && responses > 0, "legacy <-> server, for comparison: marker text in clear", "request's %d times, response's %d times", requests, responses)
	return nil
}

func all13(versions []uint16) bool {
	for _, v := range versions {
		if v != tls.VersionTLS13 {
			return false
		}
	}
	return true
}

func versionNames(versions []uint16) string {
	count := map[string]int{}
	for _, v := range versions {
		count[tls.VersionName(v)]++
	}
	var names []string
	for name, n := range count {
		names = append(names, fmt.Sprintf("%s in %d of %d connections", name, n, len(versions)))
	}
	return strings.Join(names, ", ")
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// within measures how long it takes until check holds.
func within(limit time.Duration, check func() error) (time.Duration, error) {
	began := time.Now()
	err := lab.Poll(limit, check)
	return time.Since(began), err
}
