// SPDX-License-Identifier: Apache-2.0

package telemetry

// onDemandLabels name a series of look-ups of host names for connections. Comparable.
type onDemandLabels struct {
	source   Peer
	hostname string
}

var onDemandNames = []string{
	"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
	"source_principal", "source_app", "source_version", "source_cluster", "hostname",
}

func (l onDemandLabels) values() []string {
	s := l.source
	return orUnknown([]string{
		s.Workload, s.CanonicalService, s.CanonicalRevision, s.Namespace,
		s.Principal, s.CanonicalService, s.CanonicalRevision, s.Cluster, l.hostname,
	})
}

// OnDemandDNS counts a look-up of the host name of a workload without addresses, for a connection from source.
func (m *Metrics) OnDemandDNS(source Peer, hostname string) {
	source.Region, source.Zone = "", ""
	l := onDemandLabels{source, hostname}
	m.onDemandUsed.note(l)
	m.onDemandDNS.WithLabelValues(l.values()...).Inc()
}

// CRLRejected counts a peer refused because its certificate is revoked.
func (m *Metrics) CRLRejected(r Reporter) { m.crlRejected.WithLabelValues(string(r)).Inc() }
