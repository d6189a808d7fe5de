// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
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
