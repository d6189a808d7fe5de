// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/hbone"
)

// connectHeaders are the headers of a CONNECT request, ambient section 4.2.
func connectHeaders(from netip.AddrPort, src *discovery.Workload, svc *discovery.Service) []hbone.Header {
	forwarded := fmt.Sprintf("for=%q", from)
	if svc != nil {
		forwarded += ";host=" + svc.Hostname
	}
	return []hbone.Header{
		{Name: "baggage", Value: baggage(src)},
		{Name: "forwarded", Value: forwarded},
		{Name: "traceparent", Value: traceparent()},
	}
}

// traceparent correlates the log lines of both ends; it is random for each connection.
func traceparent() string {
	var b [24]byte
	_, _ = rand.Read(b[:]) // never fails
	return "00-" + hex.EncodeToString(b[:16]) + "-" + hex.EncodeToString(b[16:]) + "-00"
}

// forwardedHost returns the value of host= in a Forwarded header, or "".
func forwardedHost(header string) string {
	for element := range strings.SplitSeq(header, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(element), "=")
		if strings.EqualFold(name, "host") {
			return strings.Trim(value, `"`)
		}
	}
	return ""
}

// answerHeaders come with the answer that opens a tunnel.
func (p *podProxy) answerHeaders(self *discovery.Workload) []hbone.Header {
	if p.NoResponseBaggage {
		return nil
	}
	return []hbone.Header{{Name: "baggage", Value: baggage(self)}}
}

// baggage describes w to the other end. It is for labels only: nobody may decide anything by it.
func baggage(w *discovery.Workload) string {
	var b strings.Builder
	put := func(key, value string) {
		if value == "" {
			return
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(key + "=" + value)
	}
	put("k8s.cluster.name", w.ClusterID)
	put("k8s.namespace.name", w.Namespace)
	put("k8s."+w.WorkloadType.String()+".name", w.WorkloadName)
	put("service.name", w.CanonicalName)
	put("service.version", w.CanonicalRevision)
	put("cloud.region", w.Locality.Region)
	put("cloud.availability_zone", w.Locality.Zone)
	return b.String()
}

// fromBaggage is the workload that a peer says it is, nil if it says nothing. For labels only, see [baggage].
func fromBaggage(header string) *discovery.Workload {
	if header == "" {
		return nil
	}
	w := &discovery.Workload{}
	for pair := range strings.SplitSeq(header, ",") {
		key, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
		value = label(value)
		switch key {
		case "k8s.cluster.name":
			w.ClusterID = value
		case "k8s.namespace.name":
			w.Namespace = value
		case "k8s.deployment.name", "k8s.cronjob.name", "k8s.pod.name", "k8s.job.name":
			w.WorkloadName, w.Name = value, value
		case "service.name":
			w.CanonicalName = value
		case "service.version":
			w.CanonicalRevision = value
		case "cloud.region":
			w.Locality.Region = value
		case "cloud.availability_zone":
			w.Locality.Zone = value
		}
	}
	return w
}

// label makes foreign text fit to be a metric's label.
func label(s string) string {
	const most = 253 // the longest name in Kubernetes
	return strings.ToValidUTF8(s[:min(len(s), most)], "")
}
