// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const inlineConfig = `
discoveryAddress: istiod.example:15012
proxyAdminPort: 15100
statsPort: 15120
concurrency: 3
proxyMetadata: {ISTIO_META_A: meta, B: plain, C: lost}
holdApplicationUntilProxyStarts: true
`

func TestProxyConfigGivesDefaults(t *testing.T) {
	c, err := parseConfig([]string{"--node-name=n"}, environment("PROXY_CONFIG", inlineConfig), []string{"ISTIO_META_C=won"}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	if c.XDSAddress != "istiod.example:15012" || c.AdminAddress != "127.0.0.1:15100" || c.StatsAddress != ":15120" || c.workers(64) != 3 {
		t.Errorf("got %+v", c)
	}
	if c.Metadata["A"] != "meta" || c.Metadata["B"] != "plain" || c.Metadata["C"] != "won" {
		t.Errorf("metadata: got %v", c.Metadata)
	}
	env := environment("PROXY_CONFIG", inlineConfig, "XDS_ADDRESS", "other:1", "ZTUNNEL_WORKER_THREADS", "5")
	if c, err = parseConfig([]string{"--node-name=n", "--stats-address=:1"}, env, nil, t.Output()); err != nil {
		t.Fatal(err)
	}
	if c.XDSAddress != "other:1" || c.StatsAddress != ":1" || c.workers(64) != 5 {
		t.Errorf("flags and variables do not win: %+v", c)
	}
}

func TestMeshFileIsReadUnlessThereIsInlineConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mesh")
	if c, err := readProxyConfig("", file); err != nil || c.DiscoveryAddress != "" {
		t.Errorf("no file: got %+v, %v", c, err)
	}
	if err := os.WriteFile(file, []byte("rootNamespace: x\ndefaultConfig: {discoveryAddress: 'file:1'}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := readProxyConfig("", file); err != nil || c.DiscoveryAddress != "file:1" {
		t.Errorf("file: got %+v, %v", c, err)
	}
	if c, err := readProxyConfig("discoveryAddress: inline:1", file); err != nil || c.DiscoveryAddress != "inline:1" {
		t.Errorf("both: got %+v, %v", c, err)
	}
}

func TestBadProxyConfigIsNamed(t *testing.T) {
	for text, want := range map[string]string{
		"[": "environment PROXY_CONFIG", "statsPort: 70000": "environment PROXY_CONFIG", "concurrency: -1": "concurrency",
	} {
		if _, err := parseConfig([]string{"--node-name=n"}, environment("PROXY_CONFIG", text), nil, t.Output()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}
