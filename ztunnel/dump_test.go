// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
)

func TestDumpNamesNoSecretAndEveryPart(t *testing.T) {
	env := environment("AUTH_TOKEN", "hush-token")
	config, err := parseConfig([]string{"--node-name=n"}, env, []string{"XDS_HEADER_A=hush-header", "CA_HEADER_A=hush-header"}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	z := &ztunnel{config: config, store: discovery.NewStore(), log: slog.New(slog.DiscardHandler)}
	text, err := json.Marshal(z.dump())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "hush") {
		t.Errorf("a secret is in %s", text)
	}
	var parts map[string]any
	if err := json.Unmarshal(text, &parts); err != nil {
		t.Fatal(err)
	}
	want := []string{"certificates", "config", "policies", "services", "stagedServices", "staticConfig", "version", "workloadState", "workloads"}
	if got := slices.Sorted(maps.Keys(parts)); !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if parts["certificates"] == nil {
		t.Error("certificates are null, which is no list")
	}
}
