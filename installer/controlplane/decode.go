// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	securityv1 "istio.io/api/security/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
)

// knownKinds is what the message about an unknown kind offers.
const knownKinds = "v1 Namespace, Pod, Service; security.istio.io/v1 AuthorizationPolicy, PeerAuthentication"

// parseFile turns a file's content into objects. The error, if any, names the file and the line.
func parseFile(path string, data []byte) (*objects, *FileError) {
	objs := &objects{}
	docs, err := documents(data)
	if err != nil {
		return nil, inFile(path, data, 0, err)
	}
	for _, doc := range docs {
		if err := objs.add(path, doc); err != nil {
			return nil, inFile(path, data, doc.Line, err)
		}
	}
	return objs, nil
}

// inFile places err: on the line that it knows itself, else on the given one.
func inFile(path string, data []byte, line int, err error) *FileError {
	var le *lineError
	if errors.As(err, &le) {
		line, err = le.line, le.err
	}
	// To YAML more is a line break than to editors, and what ends too early is wrong behind the last line.
	line = min(line, 1+bytes.Count(bytes.TrimRight(data, "\n"), []byte("\n")))
	return &FileError{Origin: Origin{Path: path, Line: line}, Err: err}
}

// add decodes one document, or each item of a List.
func (o *objects) add(path string, doc *yaml.Node) error {
	if doc.Kind != yaml.MappingNode {
		return atLine(doc.Line, "document is not an object with apiVersion and kind")
	}
	gvk, err := kindOf(doc)
	if err != nil {
		return err
	}
	if gvk == "v1/List" {
		items := child(doc, "items")
		if items == nil || items.Kind != yaml.SequenceNode {
			return atLine(doc.Line, "items: is not a list")
		}
		for _, item := range items.Content {
			if err := o.add(path, item); err != nil {
				return err
			}
		}
		return nil
	}
	return o.addKind(gvk, doc, Origin{Path: path, Line: doc.Line})
}

func kindOf(doc *yaml.Node) (string, error) {
	version, kind := child(doc, "apiVersion"), child(doc, "kind")
	switch {
	case version == nil || version.Value == "":
		return "", atLine(doc.Line, "apiVersion is missing")
	case kind == nil || kind.Value == "":
		return "", atLine(doc.Line, "kind is missing")
	}
	return version.Value + "/" + kind.Value, nil
}

func (o *objects) addKind(gvk string, doc *yaml.Node, at Origin) error {
	switch gvk {
	case "v1/Namespace":
		v := &Namespace{Namespace: &corev1.Namespace{}, Origin: at}
		if err := decodeObject(doc, v.Namespace, &v.ObjectMeta); err != nil {
			return err
		}
		o.namespaces = append(o.namespaces, v)
	case "v1/Pod":
		v := &Pod{Pod: &corev1.Pod{}, Origin: at}
		if err := decodeObject(doc, v.Pod, &v.ObjectMeta); err != nil {
			return err
		}
		o.pods = append(o.pods, v)
	case "v1/Service":
		v := &Service{Service: &corev1.Service{}, Origin: at}
		if err := decodeObject(doc, v.Service, &v.ObjectMeta); err != nil {
			return err
		}
		o.services = append(o.services, v)
	case "security.istio.io/v1/PeerAuthentication", "security.istio.io/v1beta1/PeerAuthentication":
		v := &PeerAuthentication{Spec: &securityv1.PeerAuthentication{}, Origin: at}
		if err := decodePolicy(doc, &v.ObjectMeta, v.Spec); err != nil {
			return err
		}
		o.peerAuths = append(o.peerAuths, v)
	case "security.istio.io/v1/AuthorizationPolicy", "security.istio.io/v1beta1/AuthorizationPolicy":
		v := &AuthorizationPolicy{Spec: &securityv1.AuthorizationPolicy{}, Origin: at}
		if err := decodePolicy(doc, &v.ObjectMeta, v.Spec); err != nil {
			return err
		}
		o.authz = append(o.authz, v)
	default:
		line := doc.Line
		if k := child(doc, "kind"); k != nil {
			line = k.Line
		}
		return atLine(line, "kind %q is not supported (known: %s)", gvk, knownKinds)
	}
	return o.check(doc, at)
}

// decodeObject decodes a whole core object into v, whose metadata is meta.
func decodeObject(doc *yaml.Node, v any, meta *metav1.ObjectMeta) error {
	if err := decodeStrict(doc, v); err != nil {
		return err
	}
	return checkName(doc, meta, fmt.Sprintf("%T", v) != "*v1.Namespace")
}

// decodePolicy decodes an Istio object: its metadata as Kubernetes does, its spec as protobuf does.
func decodePolicy(doc *yaml.Node, meta *metav1.ObjectMeta, spec proto.Message) error {
	var envelope struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        metav1.ObjectMeta `json:"metadata"`
		Spec            json.RawMessage   `json:"spec"`
		Status          json.RawMessage   `json:"status"`
	}
	if err := decodeStrict(doc, &envelope); err != nil {
		return err
	}
	*meta = envelope.Metadata
	if err := checkName(doc, meta, true); err != nil {
		return err
	}
	n := child(doc, "spec")
	if n == nil {
		return atLine(doc.Line, "spec is missing; write \"spec: {}\" for an empty one")
	}
	if err := refuseNothings(n, "spec"); err != nil {
		return err
	}
	data, err := alignedJSON(n)
	if err != nil {
		return err
	}
	if err := protojson.Unmarshal(data, spec); err != nil {
		return protoError(err, n.Line)
	}
	return nil
}

// decodeStrict decodes as the Kubernetes API server does with fieldValidation=Strict.
func decodeStrict(doc *yaml.Node, v any) error {
	data, err := alignedJSON(doc)
	if err != nil {
		return err
	}
	strict, err := kjson.UnmarshalStrict(data, v)
	var typeErr *json.UnmarshalTypeError
	switch {
	case errors.As(err, &typeErr):
		return atLine(lineOfOffset(data, typeErr.Offset), "%s: want %s, have a JSON %s", typeErr.Field, typeErr.Type, typeErr.Value)
	case err != nil:
		return err
	case len(strict) > 0:
		line := doc.Line
		var fe kjson.FieldError
		if errors.As(strict[0], &fe) {
			line = lineOfPath(doc, fe.FieldPath())
		}
		return atLine(line, "%w", strict[0])
	}
	return nil
}

var protoLine = regexp.MustCompile(`\(line (\d+):\d+\):? ?`)

// protoError takes the line out of a protojson error text, which has no other place for it, and with it the prefix whose
// blank that package varies on purpose.
func protoError(err error, line int) error {
	text := strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\u00a0", " "), "proto: ")
	if m := protoLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1]) // the pattern admits digits only
		text = strings.Replace(text, m[0], "", 1)
	}
	return atLine(line, "spec: %s", text)
}
