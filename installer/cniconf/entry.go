// SPDX-License-Identifier: Apache-2.0

package cniconf

import (
	"bytes"
	"encoding/json"
)

// PluginType is the name of our plugin's binary, and with it what an entry of ours is known by.
const PluginType = "sluice-cni"

// Entry is our plugin's entry in a configuration list. Fields left empty are left out; the plugin has defaults.
type Entry struct {
	AgentSocket       string   `json:"agentSocket,omitempty"`
	PinRoot           string   `json:"pinRoot,omitempty"`
	StateDir          string   `json:"stateDir,omitempty"`
	ExcludeNamespaces []string `json:"excludeNamespaces,omitempty"`
	LogLevel          string   `json:"logLevel,omitempty"`
}

// marshal renders the entry as one line.
func (e Entry) marshal() ([]byte, error) {
	type fields Entry
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // a path is to be read by people
	err := enc.Encode(struct {
		Type string `json:"type"`
		fields
	}{PluginType, fields(e)})
	return bytes.TrimSpace(b.Bytes()), err
}
