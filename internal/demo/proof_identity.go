// SPDX-License-Identifier: Apache-2.0

package main

import "strings"

// SPIFFE names of the pods, by their service accounts.
const (
	clientID = "spiffe://cluster.local/ns/demo/sa/client"
	serverID = "spiffe://cluster.local/ns/demo/sa/server"
)

// proveIdentity makes one request and looks for its line in the access logs of both nodes.
func proveIdentity(s *scene, r *report) error {
	if a := s.curl(s.client, url(s.server.Addr4, httpPort, tag()), requestMarker); !a.ok() {
		r.check(false, "client -> server", "%v", a)
	}
	for i, direction := range []string{"outbound", "inbound"} {
		n := s.Nodes[i]
		line, err := findLog(n, direction+" connection with both identities", func(l logLine) bool {
			return l.text("direction") == direction && l.text("src.identity") == clientID && l.text("dst.identity") == serverID
		})
		if err != nil {
			r.check(false, "access log on "+n.Name, "%v", err)
			continue
		}
		short := func(key string) string { return strings.TrimPrefix(line.text(key), "spiffe://cluster.local") }
		r.check(true, "access log on "+n.Name+", "+direction, "spiffe://cluster.local%s -> %s, %s", short("src.identity"), short("dst.identity"), line.text("verdict"))
	}
	return nil
}
