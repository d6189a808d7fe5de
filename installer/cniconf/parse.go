// SPDX-License-Identifier: Apache-2.0

package cniconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// list is a configuration with the places of what Insert and Remove touch.
type list struct {
	data     []byte
	name     string
	version  string
	versions []string
	// bare is set for the configuration of a single plugin; plugins is then empty.
	bare    bool
	kind    string // of the single plugin
	plugins []plugin
}

// plugin is one entry: data[start:end].
type plugin struct {
	start, end int
	kind       string
}

// member is one key of an object, and where its value stands.
type member struct {
	key        string
	start, end int
}

func parse(data []byte) (*list, error) {
	if err := wellFormed(data); err != nil {
		return nil, err
	}
	l := &list{data: data}
	found := map[string]member{}
	for _, m := range members(data) {
		if _, dup := found[m.key]; dup {
			return nil, fmt.Errorf("%s is given twice", m.key)
		}
		found[m.key] = m
	}
	if err := l.header(found); err != nil {
		return nil, err
	}
	plugins, isList := found["plugins"]
	kind, hasType := found["type"]
	switch {
	case isList:
		return l, l.readPlugins(plugins)
	case hasType:
		l.bare = true
		if err := json.Unmarshal(data[kind.start:kind.end], &l.kind); err != nil {
			return nil, fmt.Errorf("type: %s has the wrong type", data[kind.start:kind.end])
		}
		return l, nil
	}
	return nil, errors.New("plugins is missing, and so is type: neither a list nor the configuration of one plugin")
}

// wellFormed says where a text stops being JSON.
func wellFormed(data []byte) error {
	var top json.RawMessage
	err := json.Unmarshal(data, &top)
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		line := 1 + bytes.Count(data[:min(int(syntax.Offset), len(data))], []byte("\n"))
		return fmt.Errorf("line %d: is not JSON: %w", line, err)
	case err != nil:
		return fmt.Errorf("is not JSON: %w", err)
	case !bytes.HasPrefix(bytes.TrimSpace(top), []byte("{")):
		return errors.New("is not a JSON object")
	}
	return nil
}

// header reads what a list and a bare configuration have in common.
func (l *list) header(found map[string]member) error {
	for _, f := range []struct {
		key  string
		into any
	}{{"name", &l.name}, {"cniVersion", &l.version}, {"cniVersions", &l.versions}} {
		m, ok := found[f.key]
		if !ok {
			continue
		}
		if err := json.Unmarshal(l.data[m.start:m.end], f.into); err != nil {
			return fmt.Errorf("%s: %s has the wrong type", f.key, l.data[m.start:m.end])
		}
	}
	if l.name == "" {
		return errors.New("name is missing")
	}
	return nil
}

func (l *list) readPlugins(m member) error {
	elems, ok := elements(l.data, m)
	if !ok {
		return errors.New("plugins: is not a list")
	}
	if len(elems) == 0 {
		return errors.New("plugins: is empty, there is nothing to chain to")
	}
	for i, e := range elems {
		var head struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal(l.data[e.start:e.end], &head); err != nil {
			return fmt.Errorf("plugins[%d]: is not the configuration of a plugin", i)
		}
		if head.Type == "" {
			return fmt.Errorf("plugins[%d]: type is missing", i)
		}
		l.plugins = append(l.plugins, plugin{start: e.start, end: e.end, kind: head.Type})
	}
	return nil
}

// ours are the indexes of our entries.
func (l *list) ours() []int {
	var found []int
	for i, p := range l.plugins {
		if p.kind == PluginType {
			found = append(found, i)
		}
	}
	return found
}

// members lists an object's keys. data is known to be well-formed.
func members(data []byte) []member {
	dec := json.NewDecoder(bytes.NewReader(data))
	_, _ = dec.Token() // {
	var out []member
	for dec.More() {
		key, _ := dec.Token()
		m := nextValue(dec, 0)
		m.key, _ = key.(string)
		out = append(out, m)
	}
	return out
}

// elements lists an array's values; ok is false if m is none.
func elements(data []byte, m member) (out []member, ok bool) {
	dec := json.NewDecoder(bytes.NewReader(data[m.start:m.end]))
	if t, _ := dec.Token(); t != json.Delim('[') {
		return nil, false
	}
	for dec.More() {
		out = append(out, nextValue(dec, m.start))
	}
	return out, true
}

// nextValue reads one value and says where it stands, base bytes further on than the decoder counts.
func nextValue(dec *json.Decoder, base int) member {
	var raw json.RawMessage
	_ = dec.Decode(&raw) // well-formed
	end := base + int(dec.InputOffset())
	return member{start: end - len(raw), end: end}
}
