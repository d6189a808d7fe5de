// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"
)

func environment(pairs ...string) func(string) string {
	env := map[string]string{}
	for i := 0; i+1 < len(pairs); i += 2 {
		env[pairs[i]] = pairs[i+1]
	}
	return func(name string) string { return env[name] }
}

func TestFlagsOverrideEnvironment(t *testing.T) {
	env := environment("NODE_NAME", "n1", "XDS_ADDRESS", "https://istiod:15012", "INPOD_UDS", "/run/a.sock", "TERMINATION_GRACE_PERIOD_SECONDS", "30")
	c, err := parseConfig([]string{"--xds-address", "unix:///x.sock", "--agent-socket="}, env, []string{"ISTIO_META_A=b", "ISTIO_METAJSON_C=[1]"}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	if c.NodeName != "n1" || c.XDSAddress != "unix:///x.sock" || c.ZDSSocket != "/run/a.sock" || c.AgentSocket != "" || c.DrainTimeout != 25*time.Second || c.Metadata["A"] != "b" {
		t.Errorf("got %+v", c)
	}
}

func TestEverySettingOfTheReferenceIsTaken(t *testing.T) {
	env := environment("NODE_NAME", "n", "CRL_PATH", "/crl", "TLS12_ENABLED", "true", "COMPLIANCE_POLICY", "pqc",
		"LOCALHOST_APP_TUNNEL", "false", "ENABLE_RESPONSE_BAGGAGE", "false", "POOL_MAX_STREAMS_PER_CONNECTION", "7",
		"POOL_UNUSED_RELEASE_TIMEOUT", "1m", "HTTP2_STREAM_WINDOW_SIZE", "65535", "HTTP2_CONNECTION_WINDOW_SIZE", "70000",
		"HTTP2_FRAME_SIZE", "16384", "KEEPALIVE_ENABLED", "false", "KEEPALIVE_TIME", "1s", "KEEPALIVE_INTERVAL", "2s",
		"KEEPALIVE_RETRIES", "3", "USER_TIMEOUT_ENABLED", "true", "AUTHZ_POLICY_INFO_LOGGING", "true", "IPV6_ENABLED", "false",
		"ENABLE_ORIG_SRC", "false", "INPOD_PORT_REUSE", "false", "PACKET_MARK", "0x10", "LOCAL_XDS", "{}",
		"MAX_CONNECTIONS_PER_POD", "5", "MAX_CONNECTIONS", "50", "ALT_XDS_HOSTNAME", "x", "ALT_CA_HOSTNAME", "y",
		"SERVICE_ACCOUNT", "sa", "ISTIO_META_DNS_CAPTURE", "false", "ZTUNNEL_WORKER_THREADS", "50%", "CA_ADDRESS", "ca:1",
		"ENABLE_PROXY", "true", "PROXY_MODE", "shared", "XDS_ON_DEMAND", "false", "FAKE_CA", "false", "UNSTABLE_ENABLE_SOCKS5", "false")
	c, err := parseConfig(nil, env, []string{"XDS_HEADER_A_b=1", "CA_HEADER_X=2", "XDS_ADDRESS=", "AUTH_TOKEN="}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	if c.OriginalSource == nil || *c.OriginalSource {
		t.Errorf("OriginalSource: got %v, want false", c.OriginalSource)
	}
	got, want := *c, Config{
		CRLPath: "/crl", TLS12: true, CompliancePolicy: "pqc", PoolMaxStreams: 7, PoolUnusedRelease: time.Minute,
		StreamWindow: 65535, ConnectionWindow: 70000, FrameSize: 16384, KeepAlive: KeepAlive{Time: time.Second, Interval: 2 * time.Second, Retries: 3},
		UserTimeout: true, AuthzInfo: true, PacketMark: 16, LocalXDS: "{}", MaxConnectionsPerPod: 5, MaxConnections: 50,
		AltXDSHostname: "x", AltCAHostname: "y", ServiceAccount: "sa", WorkerThreads: threads{set: true, percent: 50}, CAAddress: "ca:1",
		XDSHeaders: map[string]string{"a_b": "1"}, CAHeaders: map[string]string{"x": "2"},
		// What the other tests look at, and defaults.
		ZDSSocket: c.ZDSSocket, AgentSocket: c.AgentSocket, PinRoot: c.PinRoot, XDSRootCA: c.XDSRootCA, SecretTTL: 24 * time.Hour,
		NodeName: "n", Namespace: "istio-system", InstanceIP: "1.1.1.1", ClusterID: "Kubernetes", TrustDomain: "cluster.local",
		ClusterDomain: "cluster.local", StatsAddress: ":15020", ReadinessAddress: ":15021", AdminAddress: "127.0.0.1:15000",
		DrainTimeout: 5 * time.Second, LogLevel: "info", LogFormat: "text", OriginalSource: c.OriginalSource, Metadata: c.Metadata,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestBadValuesNameTheVariable(t *testing.T) {
	for variable, bad := range map[string][]string{
		"TLS12_ENABLED": {"yes", "1", "True"}, "POOL_MAX_STREAMS_PER_CONNECTION": {"0", "-1", "many"},
		"HTTP2_FRAME_SIZE": {"16383", "16777216"}, "HTTP2_STREAM_WINDOW_SIZE": {"65534", "2147483648"}, "KEEPALIVE_RETRIES": {"0", "128"},
		"PACKET_MARK": {"0", "x", "4294967296"}, "ENABLE_ORIG_SRC": {"auto"}, "KEEPALIVE_TIME": {"180"},
		"ZTUNNEL_WORKER_THREADS": {"-1", "0%", "101%", "x%", "x"}, "PROXY_MODE": {"dedicated"}, "PROXY_WORKLOAD_INFO": {"a/b/c"},
		"XDS_ON_DEMAND": {"true"}, "FAKE_CA": {"true"}, "UNSTABLE_ENABLE_SOCKS5": {"true"}, "ENABLE_PROXY": {"false"}, "MAX_CONNECTIONS": {"-1"},
		"TERMINATION_GRACE_PERIOD_SECONDS": {"30s"},
	} {
		for _, value := range bad {
			_, err := parseConfig([]string{"--node-name=n"}, environment(variable, value), nil, t.Output())
			if err == nil || !strings.Contains(err.Error(), "environment "+variable+": \""+value+"\"") {
				t.Errorf("%s=%s: got %v", variable, value, err)
			}
		}
	}
	for _, bad := range []string{"XDS_HEADER_=x", "CA_HEADER_A B=x", "XDS_HEADER_GRPC-X=x", "XDS_HEADER_A=\x01"} {
		variable, _, _ := strings.Cut(bad, "=")
		if _, err := parseConfig([]string{"--node-name=n"}, environment(), []string{bad}, t.Output()); err == nil || !strings.Contains(err.Error(), variable) {
			t.Errorf("%q: got %v", bad, err)
		}
	}
}

func TestWorkersByCores(t *testing.T) {
	for _, tc := range []struct {
		c     Config
		cores int
		want  int
	}{
		{Config{}, 2, 1}, {Config{}, 3, 2}, {Config{}, 64, 16}, {Config{}, 1, 1}, {Config{cpuLimit: 1}, 64, 1}, {Config{cpuRequest: 20}, 64, 20},
		{Config{cpuCount: 8}, 64, 2}, {Config{WorkerThreads: threads{set: true}}, 64, 64},
		{Config{WorkerThreads: threads{set: true, percent: 50}}, 5, 3}, {Config{WorkerThreads: threads{set: true, count: 3}}, 64, 3},
	} {
		if got := tc.c.workers(tc.cores); got != tc.want {
			t.Errorf("%+v on %d cores: got %d, want %d", tc.c, tc.cores, got, tc.want)
		}
	}
}

func TestWithoutControlPlaneThereMustBeLocalXDSAndAnAuthority(t *testing.T) {
	_, err := parseConfig([]string{"--node-name=n", "--xds-address="}, environment(), nil, t.Output())
	for _, want := range []string{"--xds-address: missing", "--ca-address: missing"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if _, err := parseConfig([]string{"--node-name=n", "--xds-address=", "--ca-address=ca:15012", "--local-xds={}"}, environment(), nil, t.Output()); err != nil {
		t.Error(err)
	}
}

func TestDrainTimeoutFollowsTheGracePeriod(t *testing.T) {
	for _, tc := range []struct {
		env  []string
		want time.Duration
	}{
		{nil, 5 * time.Second},
		{[]string{"TERMINATION_GRACE_PERIOD_SECONDS", "30"}, 25 * time.Second},
		{[]string{"TERMINATION_GRACE_PERIOD_SECONDS", "10"}, 9 * time.Second},
		{[]string{"TERMINATION_GRACE_PERIOD_SECONDS", "1"}, time.Second},
		{[]string{"TERMINATION_GRACE_PERIOD_SECONDS", "30", "CONNECTION_TERMINATION_DEADLINE", "7s"}, 7 * time.Second},
	} {
		c, err := parseConfig([]string{"--node-name=n"}, environment(tc.env...), nil, t.Output())
		if err != nil || c.DrainTimeout != tc.want {
			t.Errorf("%v: got %v, %v, want %s", tc.env, c, err, tc.want)
		}
	}
}

func TestAllMistakesAreNamed(t *testing.T) {
	var out, errs bytes.Buffer
	args := []string{
		"--zds-socket=x", "--agent-socket=y", "--pin-root=z", "--xds-address=istiod", "--ca-address=http://ca", "--stats-address=nowhere",
		"--admin-address=0.0.0.0:15000", "--drain-timeout=-1s", "--log-level=loud", "--log-format=xml", "extra",
	}
	if code := run(args, environment("SECRET_TTL", "soon"), nil, &out, &errs); code != exitUsage {
		t.Errorf("exit code: got %d, want %d", code, exitUsage)
	}
	for _, want := range []string{
		`--zds-socket: "x" is not an absolute path`, `--agent-socket: "y"`, `--pin-root: "z"`,
		`--xds-address: "istiod" is neither unix:///path nor https://host:port`, `--ca-address: "http://ca"`, `--stats-address: `,
		`--admin-address: "0.0.0.0:15000" is not on loopback`, `--drain-timeout: -1s is not positive`, `--log-level: log level "loud"`,
		`--log-format: log format "xml"`, `unexpected argument "extra"`, `--node-name: missing`, `environment SECRET_TTL: `,
	} {
		if !strings.Contains(errs.String(), want) {
			t.Errorf("no %q in\n%s", want, errs.String())
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run([]string{"--help"}, environment(), nil, &out, &errs); code != exitOK || !strings.Contains(errs.String(), "XDS_ADDRESS") {
		t.Errorf("help: code %d, %s", code, errs.String())
	}
	if code := run([]string{"version"}, environment(), nil, &out, &errs); code != exitOK || out.Len() == 0 {
		t.Errorf("version: code %d, %q", code, out.String())
	}
	if code := run([]string{"--no-such-flag"}, environment(), nil, &out, &errs); code != exitUsage {
		t.Errorf("unknown flag: code %d, want %d", code, exitUsage)
	}
}
