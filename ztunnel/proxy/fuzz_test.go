// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/hbone"
)

// FuzzBaggage: whatever a peer says of itself becomes labels that are valid and short, and saying it again changes nothing.
func FuzzBaggage(f *testing.F) {
	f.Add("k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=web,service.name=web,service.version=v1,cloud.region=r,cloud.availability_zone=z")
	f.Add("k8s.pod.name=\xff\xfe, service.name = a ,=,,x")
	f.Fuzz(func(t *testing.T, header string) {
		w := fromBaggage(header)
		if (w == nil) != (header == "") {
			t.Fatalf("%q: got %+v", header, w)
		}
		if w == nil {
			return
		}
		for _, v := range []string{w.ClusterID, w.Namespace, w.WorkloadName, w.Name, w.CanonicalName, w.CanonicalRevision, w.Locality.Region, w.Locality.Zone} {
			if len(v) > 253 || !utf8.ValidString(v) || strings.Contains(v, ",") {
				t.Errorf("%q: label %q", header, v)
			}
		}
		if w.ServiceAccount != "" || w.TrustDomain != "" || len(w.Addresses) > 0 {
			t.Errorf("%q: a peer's word makes %+v, want labels only", header, w)
		}
	})
}

// FuzzForwarded: a host is found only where the header has one, and what we send is read back.
func FuzzForwarded(f *testing.F) {
	f.Add(`for="10.0.0.1:4711";host=web.default.svc.cluster.local`, "web.default.svc.cluster.local")
	f.Add(`host="";HOST=a; by=x`, "a")
	f.Fuzz(func(t *testing.T, header, hostname string) {
		if host := forwardedHost(header); host != "" && !strings.Contains(header, host) {
			t.Errorf("%q: host %q", header, host)
		}
		if strings.ContainsAny(hostname, "\";\t\n\v\f\r \u0085\u00a0") || strings.TrimSpace(hostname) != hostname {
			return // no name of a service
		}
		headers := connectHeaders(netip.AddrPort{}, &discovery.Workload{}, &discovery.Service{Hostname: hostname})
		i := slices.IndexFunc(headers, func(h hbone.Header) bool { return h.Name == "forwarded" })
		if got := forwardedHost(headers[i].Value); got != hostname {
			t.Errorf("%q: host %q, want %q", headers[i].Value, got, hostname)
		}
	})
}

// FuzzSender: the header that names a network makes the peer's word count only if it names another than ours.
func FuzzSender(f *testing.F) {
	f.Add("far", "near", "service.name=web")
	f.Add("", "near", "")
	f.Add("near", "near", "service.name=web")
	f.Fuzz(func(t *testing.T, said, ours, baggage string) {
		foreign := isForeign([]hbone.Header{{Name: "baggage", Value: baggage}, {Name: networkHeader, Value: said}}, ours)
		if foreign != (said != ours) {
			t.Errorf("%q on network %q: foreign %v", said, ours, foreign)
		}
		if isForeign([]hbone.Header{{Name: "baggage", Value: said}}, ours) {
			t.Errorf("foreign without the header")
		}
	})
}

// FuzzProxyHeader reads back, by the text of the PROXY protocol, version 2, section 2.2, what is written for applications.
func FuzzProxyHeader(f *testing.F) {
	f.Add([]byte{10, 0, 0, 1}, []byte{10, 0, 0, 2}, uint16(4711), uint16(80), "spiffe://cluster.local/ns/default/sa/client")
	f.Add(make([]byte, 16), []byte{10, 0, 0, 2}, uint16(1), uint16(0), "")
	f.Add([]byte{15: 1}, []byte{10: 0xff, 11: 0xff, 15: 1}, uint16(0), uint16(65535), "x")
	f.Fuzz(func(t *testing.T, src, dst []byte, srcPort, dstPort uint16, peer string) {
		from, ok := netip.AddrFromSlice(src)
		to, ok2 := netip.AddrFromSlice(dst)
		if !ok || !ok2 || len(peer) > 60_000 {
			return
		}
		h := proxyHeader(netip.AddrPortFrom(from, srcPort), netip.AddrPortFrom(to, dstPort), peer)
		if !bytes.HasPrefix(h, []byte("\r\n\r\n\x00\r\nQUIT\n\x21")) || int(binary.BigEndian.Uint16(h[14:])) != len(h)-16 {
			t.Fatalf("got % x", h)
		}
		size := map[byte]int{0x11: 4, 0x21: 16}[h[13]]
		if size == 0 || (size == 4) != (len(src) == 4 && len(dst) == 4) {
			t.Fatalf("family %#x for %s and %s", h[13], from, to)
		}
		gotFrom, _ := netip.AddrFromSlice(h[16 : 16+size])
		gotTo, _ := netip.AddrFromSlice(h[16+size : 16+2*size])
		ports := h[16+2*size:]
		if gotFrom.Unmap() != from.Unmap() || gotTo.Unmap() != to.Unmap() ||
			binary.BigEndian.Uint16(ports) != srcPort || binary.BigEndian.Uint16(ports[2:]) != dstPort {
			t.Errorf("%s:%d to %s:%d comes back as % x", from, srcPort, to, dstPort, h)
		}
		tlv := ports[4:]
		if peer == "" && len(tlv) > 0 || peer != "" && (tlv[0] != proxyTLVIdentity || int(binary.BigEndian.Uint16(tlv[1:])) != len(peer) || string(tlv[3:]) != peer) {
			t.Errorf("identity %q comes back as % x", peer, tlv)
		}
	})
}
