// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func ask(t *testing.T, h http.Handler, method, target string) (int, string) {
	t.Helper()
	recorder := httptest.NewRecorder()
	h.ServeHTTP(recorder, httptest.NewRequest(method, target, nil))
	return recorder.Code, recorder.Body.String()
}

func TestReadinessNamesWhatIsPending(t *testing.T) {
	var r Readiness
	h := ReadyHandler(&r)
	r.Pend("state manager")
	r.Pend("workload proxy manager")
	r.Pend("state manager")
	for _, step := range []struct {
		done, body string
		code       int
	}{
		{"", "not ready, pending: state manager, workload proxy manager\n", 500},
		{"state manager", "not ready, pending: workload proxy manager\n", 500},
		{"workload proxy manager", "ready\n", 200},
	} {
		r.Done(step.done)
		if code, body := ask(t, h, "GET", "/healthz/ready"); code != step.code || body != step.body {
			t.Errorf("after %q: got %d %q, want %d %q", step.done, code, body, step.code, step.body)
		}
	}
}

func TestMetricsNamesAndLabels(t *testing.T) {
	m := NewMetrics("v1")
	labels := Labels{Reporter: ReporterSource, MTLS: true, Source: Peer{Workload: "client", Principal: "spiffe://a"}, Service: "web"}
	conn := m.Series(labels).Open()
	scraped := 0
	m.OnScrape(func() { scraped++; conn.Progress(10, 20) })
	h := StatsHandler(m)
	_, body := ask(t, h, "GET", "/metrics")
	all := `connection_security_policy="mutual_tls",destination_app="unknown",destination_canonical_revision="unknown",destination_canonical_service="unknown",destination_cluster="unknown",destination_principal="unknown",destination_region="unknown",destination_service="web",destination_service_name="unknown",destination_service_namespace="unknown",destination_version="unknown",destination_workload="unknown",destination_workload_namespace="unknown",destination_zone="unknown",reporter="source",request_protocol="tcp",response_flags="-",source_app="unknown",source_canonical_revision="unknown",source_canonical_service="unknown",source_cluster="unknown",source_principal="spiffe://a",source_region="unknown",source_version="unknown",source_workload="client",source_workload_namespace="unknown",source_zone="unknown"`
	want := []string{
		"istio_tcp_connections_opened_total{" + all + "} 1",
		"istio_tcp_connections_closed_total{" + all + "} 0",
		"istio_tcp_received_bytes_total{" + all + "} 10",
		"istio_tcp_sent_bytes_total{" + all + "} 20",
		`istio_build{component="ztunnel",tag="v1"} 1`,
		"workload_manager_active_proxy_count 0",
		"workload_manager_pending_proxy_count 0",
		"workload_manager_proxies_started_total 0",
		"workload_manager_proxies_stopped_total 0",
		"process_open_fds", "go_goroutines",
	}
	for _, w := range want {
		if !strings.Contains(body, w) {
			t.Errorf("no %s in\n%s", w, body)
		}
	}
	conn.Close(5, 25, FlagDeny) // fewer received than counted while they flowed
	conn.Close(5, 25, FlagDeny)
	m.Verdict("inbound", "refused-policy")
	m.XDSMessage("type", 7)
	m.XDSTermination("Reconnect")
	m.SocketOpened(ReporterSource)
	_, body = ask(t, h, "GET", "/stats/prometheus")
	for _, w := range []string{
		"istio_tcp_connections_closed_total{" + all + "} 1",
		"istio_tcp_received_bytes_total{" + all + "} 10",
		"istio_tcp_sent_bytes_total{" + all + "} 25",
		"istio_tcp_connections_failed_total{" + strings.Replace(all, `response_flags="-"`, `response_flags="DENY"`, 1) + "} 1",
		`sluice_connection_verdicts_total{direction="inbound",verdict="refused-policy"} 1`,
		`istio_xds_message_total{url="type"} 1`, `istio_xds_message_bytes_total{url="type"} 7`,
		`istio_xds_connection_terminations_total{reason="Reconnect"} 1`,
		`istio_tcp_sockets_open{reporter="source"} 1`,
	} {
		if !strings.Contains(body, w) {
			t.Errorf("no %s in\n%s", w, body)
		}
	}
	if scraped != 2 {
		t.Errorf("polled %d times in 2 scrapes", scraped)
	}
}

func TestAdminPage(t *testing.T) {
	levels, err := ParseLevels("info")
	if err != nil {
		t.Fatal(err)
	}
	quit := 0
	h := (&Admin{Dump: func() any { return map[string]string{"version": "v1"} }, Levels: levels, Quit: func() { quit++ }}).Handler()
	for _, tc := range []struct {
		method, target, body string
		code                 int
	}{
		{"GET", "/", "config_dump", 200},
		{"GET", "/config_dump", `"version": "v1"`, 200},
		{"POST", "/logging", "current log level is info", 200},
		{"POST", "/logging?level=access=debug", "current log level is info,access=debug", 200},
		{"POST", "/logging?level=warning", "current log level is warn,access=debug", 200},
		{"POST", "/logging?level=off,xds=trace", "current log level is off,access=debug,xds=trace", 200},
		{"POST", "/logging?level=debug&reset", "current log level is debug\n", 200},
		{"POST", "/logging?level=", `""`, 400},
		{"PUT", "/logging?level=info", "", 405},
		{"POST", "/config_dump", "", 405},
		{"POST", "/logging?level=loud", `"loud"`, 400},
		{"POST", "/logging?reset", "current log level is info\n", 200},
		{"GET", "/logging", "", 405},
		{"GET", "/quitquitquit", "", 405},
		{"POST", "/quitquitquit", "shutdown now", 200},
		{"GET", "/debug/pprof/", "goroutine", 200},
		{"GET", "/debug/pprof/heap", "", 200},
		{"GET", "/debug/pprof/heap/profiling?activate=true", "always active", 200},
		{"GET", "/debug/pprof/profile?seconds=0", `"0"`, 400},
		{"GET", "/debug/pprof/profile?seconds=301", `"301"`, 400},
		{"GET", "/nothing", "", 404},
	} {
		if code, body := ask(t, h, tc.method, tc.target); code != tc.code || !strings.Contains(body, tc.body) {
			t.Errorf("%s %s: got %d %q, want %d with %q", tc.method, tc.target, code, body, tc.code, tc.body)
		}
	}
	if quit != 1 {
		t.Errorf("quit was called %d times, want 1", quit)
	}
}
