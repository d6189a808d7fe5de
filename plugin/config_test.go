// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

func TestConfigDefaults(t *testing.T) {
	got, err := parseConfig([]byte(`{"cniVersion":"1.1.0","name":"pods","type":"sluice-cni"}`))
	if err != nil {
		t.Fatal(err)
	}
	want := &config{
		AgentSocket: "/run/sluice/agent.sock", PinRoot: "/sys/fs/bpf/sluice/v1", StateDir: "/var/lib/sluice",
		ExcludeNamespaces: []string{"kube-system", "sluice-system"}, LogLevel: slog.LevelInfo,
		CNIVersion: "1.1.0", Network: "pods",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// What libcni 1.3 and the runtimes put into an entry is no mistake of the user's.
func TestConfigTakesTheKeysOfRuntimes(t *testing.T) {
	got, err := parseConfig([]byte(`{
		"cniVersion": "1.1.0", "name": "pods", "type": "sluice-cni",
		"agentSocket": "/run/x/../a.sock", "pinRoot": "/p", "stateDir": "/s", "excludeNamespaces": [], "logLevel": "debug",
		"args": {"cni": {}}, "capabilities": {"portMappings": true}, "runtimeConfig": {"portMappings": []},
		"ipam": {}, "dns": {"nameservers": ["10.0.0.1"]}, "ipMasq": true, "disableCheck": true, "disableGC": false,
		"cniVersions": ["1.0.0"], "loadOnlyInlinedPlugins": true, "cni.dev/of-the-future": 1, "prevResult": null,
		"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}],
		"cni.dev/attachments": [{"containerID": "c2", "ifname": "eth0"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	want := &config{
		AgentSocket: "/run/a.sock", PinRoot: "/p", StateDir: "/s", ExcludeNamespaces: []string{}, LogLevel: slog.LevelDebug,
		CNIVersion: "1.1.0", Network: "pods", ValidAttachments: []types.GCAttachment{{ContainerID: "c1", IfName: "eth0"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestConfigNamesEachMistake(t *testing.T) {
	for name, tc := range map[string]struct{ entry, want string }{
		"unknown key": {`{"agentSokcet":"/a"}`,
			`unknown key "agentSokcet" (the keys of sluice-cni are agentSocket, excludeNamespaces, logLevel, pinRoot, stateDir)`},
		"wrong case":             {`{"agentsocket":"/a"}`, `unknown key "agentsocket" (did you mean "agentSocket"?)`},
		"socket is a number":     {`{"agentSocket":5}`, `agentSocket: want a string, got number 5`},
		"socket is null":         {`{"agentSocket":null}`, `agentSocket: want a string, got null`},
		"relative socket":        {`{"agentSocket":"run/a.sock"}`, `agentSocket: "run/a.sock" is not an absolute path`},
		"empty socket":           {`{"agentSocket":""}`, `agentSocket: "" is not an absolute path`},
		"socket too long":        {`{"agentSocket":"/` + strings.Repeat("a", 107) + `"}`, `has 108 bytes, a socket path has at most 107`},
		"zero byte in path":      {`{"pinRoot":"/a\u0000b"}`, `pinRoot: "/a\x00b" contains a zero byte`},
		"pin root is an array":   {`{"pinRoot":["/a"]}`, `pinRoot: want a string, got array ["/a"]`},
		"relative state dir":     {`{"stateDir":"./s"}`, `stateDir: "./s" is not an absolute path`},
		"namespaces is a string": {`{"excludeNamespaces":"kube-system"}`, `excludeNamespaces: want an array of strings, got string "kube-system"`},
		"namespace is a number":  {`{"excludeNamespaces":["a",7]}`, `excludeNamespaces: [1]: want a string, got number 7`},
		"namespace is no label":  {`{"excludeNamespaces":["Kube_System"]}`, `excludeNamespaces: [0]: "Kube_System" is not the name of a namespace`},
		"log level":              {`{"logLevel":"loud"}`, `logLevel: "loud" is none of debug, info, warn, error`},
		"key twice":              {`{"pinRoot":"/a","pinRoot":"/b"}`, `key "pinRoot" occurs twice`},
		"no object":              {`[]`, `not a JSON object`},
		"cut off":                {`{"pinRoot":"/a"`, `not JSON: unexpected end of JSON input`},
		"attachments":            {`{"cni.dev/valid-attachments":{}}`, `cni.dev/valid-attachments: json: cannot unmarshal object`},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := parseConfig([]byte(tc.entry))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %s", err, tc.want)
			}
			if c == nil {
				t.Error("no config to go on with")
			}
		})
	}
}

func TestConfigNamesAllMistakesAtOnce(t *testing.T) {
	c, err := strictConfig([]byte(`{"name":"n","pinRoot":"rel","stateDir":3,"color":"red","excludeNamespaces":[1,"B"],"logLevel":0}`))
	if c != nil || err == nil {
		t.Fatalf("got %+v, %v", c, err)
	}
	cniErr, ok := err.(*types.Error)
	if !ok || cniErr.Code != types.ErrInvalidNetworkConfig {
		t.Fatalf("got %#v, want a CNI error with code 7", err)
	}
	for _, want := range []string{"pinRoot: ", "stateDir: ", `unknown key "color"`, "excludeNamespaces: [0]: ", "[1]: \"B\"", "logLevel: "} {
		if !strings.Contains(cniErr.Details, want) {
			t.Errorf("got %q, want it to name %q", cniErr.Details, want)
		}
	}
	if strings.Contains(cniErr.Details, "\n") {
		t.Errorf("got several lines: %q", cniErr.Details)
	}
}

func TestConfigKeepsDefaultsWhereMistaken(t *testing.T) {
	got, err := parseConfig([]byte(`{"pinRoot":"rel","agentSocket":1,"excludeNamespaces":{},"stateDir":"/s"}`))
	want := defaultConfig()
	want.StateDir = "/s"
	if err == nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v (%v)\nwant %+v", got, err, want)
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.1.0","name":"n","type":"sluice-cni","pinRoot":"/a","excludeNamespaces":["a"],"logLevel":"warn"}`))
	f.Add([]byte(`{"cni.dev/valid-attachments":[{"containerID":"a","ifname":"b"}],"prevResult":{"ips":[]}}`))
	f.Add([]byte(`{"agentSocket":{"agentSocket":[null]}}`))
	f.Add([]byte("{\"\xff\":1,\"pinRoot\":\"/\\ud800\"}"))
	f.Fuzz(func(t *testing.T, stdin []byte) {
		got, err := parseConfig(stdin)
		if err != nil {
			return
		}
		again, err := parseConfig(encodeConfig(t, got))
		if err != nil || !reflect.DeepEqual(got, again) {
			t.Errorf("first  %+v\nsecond %+v\nerror %v", got, again, err)
		}
	})
}

func encodeConfig(t *testing.T, c *config) []byte {
	entry := map[string]any{
		"agentSocket": c.AgentSocket, "pinRoot": c.PinRoot, "stateDir": c.StateDir, "excludeNamespaces": c.ExcludeNamespaces,
		"logLevel": strings.ToLower(c.LogLevel.String()), "cniVersion": c.CNIVersion, "name": c.Network,
	}
	if c.PrevResult != nil {
		entry["prevResult"] = c.PrevResult
	}
	if c.ValidAttachments != nil {
		entry["cni.dev/valid-attachments"] = c.ValidAttachments
	}
	b, err := json.Marshal(entry)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
