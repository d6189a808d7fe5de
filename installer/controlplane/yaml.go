// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxJSONBytes bounds what aliases may blow a document up to.
const maxJSONBytes = 8 << 20

// errNoDocument is returned for a file without a single byte of content, which is what a reader sees of a file that is
// just being written.
var errNoDocument = errors.New("file is empty")

// documents parses a stream of YAML documents. Documents that hold nothing but comments are left out.
func documents(data []byte) ([]*yaml.Node, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, errNoDocument
	}
	var docs []*yaml.Node
	for dec := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, yamlError(err)
		}
		if root := doc.Content[0]; root.Tag != "!!null" {
			docs = append(docs, root)
		}
	}
}

var (
	yamlLine = regexp.MustCompile(`^yaml: line (\d+): (?s:(.*))$`)
	// yamlFromZero are the mistakes for which the YAML parser counts lines from 0: those against its grammar, as opposed
	// to those in a token.
	yamlFromZero = regexp.MustCompile(`^did not find expected (<|node content|'-' indicator|key|',' or)`)
)

// yamlError takes the line out of an error text of the YAML parser, which has no other place for it.
func yamlError(err error) error {
	m := yamlLine.FindStringSubmatch(err.Error())
	if m == nil {
		return atLine(1, "%w", err) // line 0, to that parser, is not worth printing
	}
	line, _ := strconv.Atoi(m[1]) // the pattern admits digits only
	if yamlFromZero.MatchString(m[2]) {
		line++
	}
	return atLine(line, "yaml: %s", m[2])
}

// alignedJSON converts a YAML node to JSON in which everything stands on the line that it has in the YAML file, so that
// a line which a JSON decoder complains about is the line the user has to look at.
func alignedJSON(n *yaml.Node) ([]byte, error) {
	w := &jsonWriter{line: 1}
	if err := w.value(n); err != nil {
		return nil, err
	}
	return w.buf.Bytes(), nil
}

type jsonWriter struct {
	buf  bytes.Buffer
	line int
	// aliases being expanded, to notice one that contains itself.
	aliases []*yaml.Node
}

// seek moves to a line further down. Going up, which only the expansion of an alias asks for, is not possible.
func (w *jsonWriter) seek(line int) {
	for ; w.line < line; w.line++ {
		w.buf.WriteByte('\n')
	}
}

func (w *jsonWriter) value(n *yaml.Node) error {
	if w.buf.Len() > maxJSONBytes {
		return atLine(n.Line, "document is larger than %d bytes with its aliases expanded", maxJSONBytes)
	}
	w.seek(n.Line)
	switch n.Kind {
	case yaml.MappingNode:
		return w.mapping(n)
	case yaml.SequenceNode:
		return w.sequence(n)
	case yaml.AliasNode:
		return w.alias(n)
	default:
		return w.scalar(n)
	}
}

func (w *jsonWriter) alias(n *yaml.Node) error {
	for _, a := range w.aliases {
		if a == n.Alias {
			return atLine(n.Line, "alias %q contains itself", n.Value)
		}
	}
	w.aliases = append(w.aliases, n.Alias)
	defer func() { w.aliases = w.aliases[:len(w.aliases)-1] }()
	return w.value(n.Alias)
}

func (w *jsonWriter) mapping(n *yaml.Node) error {
	seen := make(map[string]int, len(n.Content)/2)
	w.buf.WriteByte('{')
	for i := 0; i < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.Tag == "!!merge" {
			return atLine(key.Line, "merge keys and keys that are no plain text are not supported")
		}
		if line, dup := seen[key.Value]; dup {
			return atLine(key.Line, "key %q is already set on line %d", key.Value, line)
		}
		seen[key.Value] = key.Line
		if i > 0 {
			w.buf.WriteByte(',')
		}
		w.seek(key.Line)
		if err := w.json(key.Value); err != nil {
			return atLine(key.Line, "%w", err)
		}
		w.buf.WriteByte(':')
		if err := w.value(value); err != nil {
			return err
		}
	}
	w.buf.WriteByte('}')
	return nil
}

func (w *jsonWriter) sequence(n *yaml.Node) error {
	w.buf.WriteByte('[')
	for i, v := range n.Content {
		if i > 0 {
			w.buf.WriteByte(',')
		}
		if err := w.value(v); err != nil {
			return err
		}
	}
	w.buf.WriteByte(']')
	return nil
}

func (w *jsonWriter) scalar(n *yaml.Node) error {
	var v any
	if n.ShortTag() == "!!timestamp" {
		v = n.Value // metadata.creationTimestamp has a decoder of its own
	} else if err := n.Decode(&v); err != nil {
		return yamlError(err)
	}
	if err := w.json(v); err != nil {
		return atLine(n.Line, "%q: %w", n.Value, err)
	}
	return nil
}

func (w *jsonWriter) json(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.buf.Write(b)
	return nil
}

// lineOfOffset is the line that a byte offset into aligned JSON stands on.
func lineOfOffset(data []byte, offset int64) int {
	return 1 + bytes.Count(data[:min(int(offset), len(data))], []byte("\n"))
}

// child returns the value of a key of a mapping, nil if there is none.
func child(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// lineOfPath finds the line of a field path as Kubernetes decoders print it, "spec.containers[0].image". As much of the
// path as exists decides.
func lineOfPath(n *yaml.Node, path string) int {
	line := n.Line
	for _, step := range strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		switch n.Kind {
		case yaml.SequenceNode:
			i, err := strconv.Atoi(step)
			if err != nil || i < 0 || i >= len(n.Content) {
				return line // a key that looks like an index
			}
			n = n.Content[i]
			line = n.Line
		case yaml.MappingNode:
			next := -1
			for i := 0; i < len(n.Content); i += 2 {
				if n.Content[i].Value == step {
					next = i
				}
			}
			if next < 0 {
				return line
			}
			line, n = n.Content[next].Line, n.Content[next+1]
		default:
			return line
		}
	}
	return line
}

// refuseNothings reports keys without a value and lists without an entry below n. Decoders take both for "not given",
// which in a policy means "anyone": the opposite of what whoever commented the last entry out had in mind.
func refuseNothings(n *yaml.Node, path string) error {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i < len(n.Content); i += 2 {
			if err := refuseNothings(n.Content[i+1], path+"."+n.Content[i].Value); err != nil {
				return err
			}
		}
	case yaml.SequenceNode:
		if len(n.Content) == 0 {
			return atLine(n.Line, "%s: list is empty; give it an entry or leave the key out", path)
		}
		for i, v := range n.Content {
			if err := refuseNothings(v, fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
	case yaml.AliasNode:
		return refuseNothings(n.Alias, path) // no circle: the document was expanded before
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return atLine(n.Line, "%s: has no value; give it one or leave the key out", path)
		}
	}
	return nil
}
