// SPDX-License-Identifier: Apache-2.0

package cniconf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
)

// splice replaces data[start:end].
func splice(data []byte, start, end int, with []byte) []byte {
	return slices.Concat(data[:start], with, data[end:])
}

// appendEntry adds our entry behind the last plugin, set off from it as that is from what stands before it.
func (l *list) appendEntry(e Entry) ([]byte, error) {
	last := l.plugins[len(l.plugins)-1]
	text, err := l.render(e, last)
	if err != nil {
		return nil, err
	}
	return splice(l.data, last.end, last.end, slices.Concat([]byte(","), l.spaceBefore(last), text)), nil
}

// replace puts our entry in the place of plugin i. One that says the same already is left as it is.
func (l *list) replace(i int, e Entry) ([]byte, error) {
	line, err := e.marshal()
	if err != nil {
		return nil, err
	}
	old := l.plugins[i]
	var was, is any
	if json.Unmarshal(l.data[old.start:old.end], &was) == nil && json.Unmarshal(line, &is) == nil && reflect.DeepEqual(was, is) {
		return l.data, nil
	}
	text, err := l.render(e, old)
	if err != nil {
		return nil, err
	}
	return splice(l.data, old.start, old.end, text), nil
}

// without cuts plugin i out, with the comma and the blanks that tie it to its neighbour. There must be one.
func (l *list) without(i int) []byte {
	if i > 0 {
		return splice(l.data, l.plugins[i-1].end, l.plugins[i].end, nil)
	}
	return splice(l.data, l.plugins[0].start, l.plugins[1].start, nil)
}

// spaceBefore are the blanks and line breaks in front of a plugin.
func (l *list) spaceBefore(p plugin) []byte {
	before := l.data[:p.start]
	return before[len(bytes.TrimRight(before, " \t\r\n")):]
}

// render writes the entry in the manner of the plugin like: on one line or on several, indented the same way.
func (l *list) render(e Entry, like plugin) ([]byte, error) {
	line, err := e.marshal()
	if err != nil {
		return nil, err
	}
	_, rest, several := bytes.Cut(l.data[like.start:like.end], []byte("\n"))
	if !several {
		return line, nil
	}
	indent := leadingBlanks(l.data[1+bytes.LastIndexByte(l.data[:like.start], '\n'):])
	step, ok := bytes.CutPrefix(leadingBlanks(rest), indent)
	if !ok || len(step) == 0 {
		step = []byte("  ")
	}
	var out bytes.Buffer
	if err := json.Indent(&out, line, string(indent), string(step)); err != nil {
		return nil, err
	}
	if bytes.Contains(l.data[like.start:like.end], []byte("\r\n")) {
		return bytes.ReplaceAll(out.Bytes(), []byte("\n"), []byte("\r\n")), nil
	}
	return out.Bytes(), nil
}

func leadingBlanks(line []byte) []byte {
	return line[:len(line)-len(bytes.TrimLeft(line, " \t"))]
}

// wrap makes a list of a bare configuration, which keeps its bytes, its name and its version.
func (l *list) wrap() ([]byte, *list, error) {
	name, err := json.Marshal(l.name)
	if err != nil {
		return nil, nil, err
	}
	v := l.version
	if v == "" {
		v = wrapVersion
	}
	text, err := json.Marshal(v)
	if err != nil {
		return nil, nil, err
	}
	plugin := bytes.ReplaceAll(bytes.TrimSpace(l.data), []byte("\n"), []byte("\n    "))
	wrapped := fmt.Appendf(nil, "{\n  \"cniVersion\": %s,\n  \"name\": %s,\n  \"plugins\": [\n    %s\n  ]\n}\n", text, name, plugin)
	parsed, err := parse(wrapped)
	return wrapped, parsed, err
}
