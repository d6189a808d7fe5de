// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// maxSocketPath is what fits into sockaddr_un with its closing zero.
const maxSocketPath = 107

// config is one sluice-cni entry of a conflist as the runtime hands it over on stdin.
type config struct {
	AgentSocket       string   // default /run/sluice/agent.sock
	PinRoot           string   // default /sys/fs/bpf/sluice/v1
	StateDir          string   // default /var/lib/sluice
	ExcludeNamespaces []string // namespaces whose pods are never enrolled and never delayed; default kube-system, sluice-system
	LogLevel          slog.Level

	// The runtime adds these.
	CNIVersion string
	Network    string
	PrevResult json.RawMessage // nil: there is none

	// ValidAttachments is nil when the runtime sent no list, which is not the same as an empty one.
	ValidAttachments []types.GCAttachment
}

func defaultConfig() *config {
	return &config{
		AgentSocket:       "/run/sluice/agent.sock",
		PinRoot:           "/sys/fs/bpf/sluice/v1",
		StateDir:          "/var/lib/sluice",
		ExcludeNamespaces: []string{"kube-system", "sluice-system"},
		LogLevel:          slog.LevelInfo,
	}
}

// RunDir is the folder the agent keeps its sockets and its ready marker in.
func (c *config) RunDir() string { return filepath.Dir(c.AgentSocket) }

// Excluded tells whether pods of this namespace are never enrolled.
func (c *config) Excluded(namespace string) bool {
	return slices.Contains(c.ExcludeNamespaces, namespace)
}

// settings are the keys that are ours.
var settings = map[string]func(*config, json.RawMessage) error{
	"agentSocket": func(c *config, raw json.RawMessage) error {
		path, err := absolutePath(raw)
		if err != nil {
			return err
		}
		if len(path) > maxSocketPath {
			return fmt.Errorf("%q has %d bytes, a socket path has at most %d", path, len(path), maxSocketPath)
		}
		c.AgentSocket = path
		return nil
	},
	"pinRoot":  func(c *config, raw json.RawMessage) error { return setPath(&c.PinRoot, raw) },
	"stateDir": func(c *config, raw json.RawMessage) error { return setPath(&c.StateDir, raw) },
	"excludeNamespaces": func(c *config, raw json.RawMessage) error {
		names, err := namespaces(raw)
		if err == nil {
			c.ExcludeNamespaces = names
		}
		return err
	},
	"logLevel": func(c *config, raw json.RawMessage) error {
		name, err := text(raw)
		if err != nil {
			return err
		}
		level, ok := logLevels[name]
		if !ok {
			return fmt.Errorf("%q is none of debug, info, warn, error", name)
		}
		c.LogLevel = level
		return nil
	},
}

var logLevels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
}

// runtimeKeys are the keys of the CNI specification: a runtime, or whoever wrote the list, may put them into any entry.
// A nil func accepts the key and leaves it alone.
var runtimeKeys = map[string]func(*config, json.RawMessage) error{
	"cniVersion": func(c *config, raw json.RawMessage) (err error) { c.CNIVersion, err = text(raw); return err },
	"name":       func(c *config, raw json.RawMessage) (err error) { c.Network, err = text(raw); return err },
	"type":       func(_ *config, raw json.RawMessage) error { _, err := text(raw); return err },
	"prevResult": func(c *config, raw json.RawMessage) error {
		if kind(raw) != "null" {
			c.PrevResult = raw
		}
		return nil
	},
	"cni.dev/valid-attachments": func(c *config, raw json.RawMessage) error { return setAttachments(c, raw) },
	// libcni 1.3 sends both names, see containernetworking/cni#1101.
	"cni.dev/attachments": func(c *config, raw json.RawMessage) error { return setAttachments(c, raw) },
	"args":                nil, "capabilities": nil, "runtimeConfig": nil, "ipam": nil, "dns": nil, "ipMasq": nil,
	"cniVersions": nil, "disableCheck": nil, "disableGC": nil, "loadOnlyInlinedPlugins": nil,
}

// parseConfig reads the entry strictly: keys match by exact case, unknown ones are mistakes.
//
// The error joins all mistakes. The config is never nil: a setting with a mistake has its default, so that DEL,
// which must not leave a pod behind because of a typo, can go on with it.
func parseConfig(stdin []byte) (*config, error) {
	c := defaultConfig()
	entries, err := members(stdin)
	mistakes := []error{err}
	for _, e := range entries {
		if err := c.set(e.key, e.value); err != nil {
			mistakes = append(mistakes, err)
		}
	}
	return c, errors.Join(mistakes...)
}

func (c *config) set(key string, value json.RawMessage) error {
	set, known := settings[key]
	if !known {
		set, known = runtimeKeys[key]
	}
	switch {
	// CNI 1.1, section "Reserved keys": what begins with cni.dev/ belongs to the specification.
	case !known && strings.HasPrefix(key, "cni.dev/"), known && set == nil:
		return nil
	case !known:
		return fmt.Errorf("unknown key %q%s", key, didYouMean(key))
	}
	if err := set(c, value); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

func didYouMean(key string) string {
	names := make([]string, 0, len(settings))
	for name := range settings {
		if strings.EqualFold(name, key) {
			return fmt.Sprintf(" (did you mean %q?)", name)
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return " (the keys of sluice-cni are " + strings.Join(names, ", ") + ")"
}

func setPath(to *string, raw json.RawMessage) error {
	path, err := absolutePath(raw)
	if err == nil {
		*to = path
	}
	return err
}

// label is a DNS label as RFC 1123 has it: the form of a namespace's name.
var label = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func namespaces(raw json.RawMessage) ([]string, error) {
	if kind(raw) != "array" {
		return nil, fmt.Errorf("want an array of strings, got %s", abridged(raw))
	}
	var values []json.RawMessage
	if err := json.Unmarshal(raw, &values); err != nil {
		return nil, err
	}
	names := []string{}
	var mistakes []error
	for i, v := range values {
		name, err := text(v)
		if err == nil && !label.MatchString(name) {
			err = fmt.Errorf("%q is not the name of a namespace", name)
		}
		if err != nil {
			mistakes = append(mistakes, fmt.Errorf("[%d]: %w", i, err))
			continue
		}
		names = append(names, name)
	}
	return names, errors.Join(mistakes...)
}

func setAttachments(c *config, raw json.RawMessage) error {
	if c.ValidAttachments != nil || kind(raw) == "null" {
		return nil
	}
	valid := []types.GCAttachment{}
	if err := json.Unmarshal(raw, &valid); err != nil {
		return err
	}
	c.ValidAttachments = valid
	return nil
}
