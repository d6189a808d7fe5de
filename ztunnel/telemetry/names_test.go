// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"compress/gzip"
	"io"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestEveryMetricOfTheReference is the table of ambient section 9.1: names, types, labels.
func TestEveryMetricOfTheReference(t *testing.T) {
	m := NewMetrics("v")
	m.Series(Labels{Reporter: ReporterSource}).Open().Close(1, 1, FlagDeny)
	m.SocketOpened(ReporterSource)
	m.OnDemandDNS(Peer{}, "h")
	m.CRLRejected(ReporterDestination)
	m.XDSTermination("Complete")
	m.XDSMessage("u", 1)
	m.DNSRequest(DNSLabels{})
	m.DNSUpstream(DNSLabels{}, time.Second, true)
	common := strings.Join(slices.Sorted(slices.Values(labelNames)), ",")
	source := "hostname,source_app,source_canonical_revision,source_canonical_service,source_cluster,source_principal,source_version,source_workload,source_workload_namespace"
	query := "request_protocol,request_query_type,source_canonical_revision,source_canonical_service"
	want := map[string]string{
		"istio_tcp_connections_opened_total": "COUNTER " + common, "istio_tcp_connections_closed_total": "COUNTER " + common,
		"istio_tcp_received_bytes_total": "COUNTER " + common, "istio_tcp_sent_bytes_total": "COUNTER " + common,
		"istio_tcp_connections_failed_total": "COUNTER " + common, "istio_tcp_sockets_open": "GAUGE reporter",
		"istio_on_demand_dns_total": "COUNTER " + source, "istio_crl_policy_rejections_total": "COUNTER reporter",
		"istio_crl_untracked_connections_total": "COUNTER reporter", "istio_build": "GAUGE component,tag",
		"istio_xds_connection_terminations_total": "COUNTER reason", "istio_xds_message_total": "COUNTER url",
		"istio_xds_message_bytes_total": "COUNTER url", "istio_dns_requests_total": "COUNTER " + query,
		"istio_dns_upstream_requests_total": "COUNTER " + query, "istio_dns_upstream_failures_total": "COUNTER " + query,
		"istio_dns_upstream_request_duration_seconds": "HISTOGRAM " + query, "workload_manager_active_proxy_count": "GAUGE ",
		"workload_manager_pending_proxy_count": "GAUGE ", "workload_manager_proxies_started_total": "COUNTER ",
		"workload_manager_proxies_stopped_total": "COUNTER ", "process_open_fds": "GAUGE ", "process_max_fds": "GAUGE ",
	}
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, f := range families {
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		got[f.GetName()] = f.GetType().String() + " " + strings.Join(labels, ",")
	}
	for name, shape := range want {
		if got[name] != shape {
			t.Errorf("%s: got %q, want %q", name, got[name], shape)
		}
	}
}

func TestScrapesAreNegotiated(t *testing.T) {
	h := StatsHandler(NewMetrics("v"))
	request := httptest.NewRequest("GET", "/metrics", nil)
	request.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	request.Header.Set("Accept-Encoding", "gzip")
	answer := httptest.NewRecorder()
	h.ServeHTTP(answer, request)
	if kind, coding := answer.Header().Get("Content-Type"), answer.Header().Get("Content-Encoding"); !strings.HasPrefix(kind, "application/openmetrics-text") || coding != "gzip" {
		t.Fatalf("got %q coded %q", kind, coding)
	}
	plain, err := gzip.NewReader(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(plain)
	if err != nil || !strings.HasSuffix(string(body), "# EOF\n") {
		t.Errorf("got %v, %.200q", err, body)
	}
}
