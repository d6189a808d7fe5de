// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

type member struct {
	key   string
	value json.RawMessage
}

// members splits the text of a JSON object, which must be all there is. encoding/json alone would take the last of two equal keys without a word.
func members(object []byte) ([]member, error) {
	if !json.Valid(object) {
		var v any
		return nil, fmt.Errorf("not JSON: %w", json.Unmarshal(object, &v)) // says where
	}
	d := json.NewDecoder(bytes.NewReader(object))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	var out []member
	var mistakes []error
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return out, err
		}
		key, ok := t.(string)
		if !ok {
			return out, fmt.Errorf("%v is not a key", t)
		}
		m := member{key: key}
		if err := d.Decode(&m.value); err != nil {
			return out, fmt.Errorf("%s: %w", m.key, err)
		}
		if seen[m.key] {
			mistakes = append(mistakes, fmt.Errorf("key %q occurs twice", m.key))
		}
		seen[m.key] = true
		out = append(out, m)
	}
	return out, errors.Join(mistakes...)
}

// kind names the JSON type of a value that is known to parse.
func kind(raw json.RawMessage) string {
	trimmed := bytes.TrimSpace(raw)
	if len(trimmed) == 0 {
		return "nothing"
	}
	switch trimmed[0] {
	case '"':
		return "string"
	case '{':
		return "object"
	case '[':
		return "array"
	case 't', 'f':
		return "boolean"
	case 'n':
		return "null"
	}
	return "number"
}

func text(raw json.RawMessage) (string, error) {
	if kind(raw) != "string" {
		return "", fmt.Errorf("want a string, got %s", abridged(raw))
	}
	var s string
	err := json.Unmarshal(raw, &s)
	return s, err
}

// abridged shows a value and its type in a message that stays readable when the value is not.
func abridged(raw json.RawMessage) string {
	const most = 60
	s := string(bytes.TrimSpace(raw))
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	if k := kind(raw); k != s { // null is both
		s = k + " " + s
	}
	return s
}

func absolutePath(raw json.RawMessage) (string, error) {
	path, err := text(raw)
	switch {
	case err != nil:
		return "", err
	case !filepath.IsAbs(path):
		return "", fmt.Errorf("%q is not an absolute path", path)
	case strings.ContainsRune(path, 0):
		return "", fmt.Errorf("%q contains a zero byte", path)
	}
	return filepath.Clean(path), nil
}
