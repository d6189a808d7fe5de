// SPDX-License-Identifier: Apache-2.0

package telemetry

// Reporter is the side of a connection that counts it.
type Reporter string

// ReporterSource counts what leaves a pod of this node, ReporterDestination what arrives at one.
const (
	ReporterSource      Reporter = "source"
	ReporterDestination Reporter = "destination"
)

// Peer is one end of a connection as metrics name it. Empty fields are reported as "unknown".
type Peer struct {
	Workload          string
	CanonicalService  string
	CanonicalRevision string
	Namespace         string
	// Principal is the SPIFFE URI; empty unless the connection is mTLS.
	Principal string
	Cluster   string
	Region    string
	Zone      string
}

// Labels name one time series of the connection metrics. Comparable.
type Labels struct {
	Reporter         Reporter
	Source           Peer
	Destination      Peer
	Service          string // host name
	ServiceNamespace string
	ServiceName      string
	MTLS             bool
}

// labelNames is the reference's order; values below must follow it.
var labelNames = []string{
	"reporter",
	"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
	"source_principal", "source_app", "source_version", "source_cluster",
	"destination_service", "destination_service_namespace", "destination_service_name",
	"destination_workload", "destination_canonical_service", "destination_canonical_revision", "destination_workload_namespace",
	"destination_principal", "destination_app", "destination_version", "destination_cluster",
	"request_protocol", "response_flags", "connection_security_policy",
	"source_region", "source_zone", "destination_region", "destination_zone",
}

func (l Labels) values(flags string) []string {
	security := ""
	if l.MTLS {
		security = "mutual_tls"
	}
	s, d := l.Source, l.Destination
	return orUnknown([]string{
		string(l.Reporter),
		s.Workload, s.CanonicalService, s.CanonicalRevision, s.Namespace,
		s.Principal, s.CanonicalService, s.CanonicalRevision, s.Cluster,
		l.Service, l.ServiceNamespace, l.ServiceName,
		d.Workload, d.CanonicalService, d.CanonicalRevision, d.Namespace,
		d.Principal, d.CanonicalService, d.CanonicalRevision, d.Cluster,
		"tcp", flags, security,
		s.Region, s.Zone, d.Region, d.Zone,
	})
}

// orUnknown puts the reference's word for what is missing into values.
func orUnknown(values []string) []string {
	for i, v := range values {
		if v == "" {
			values[i] = "unknown"
		}
	}
	return values
}
