// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares got with a file, or writes it with -update.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (run with -update to make it)", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func inputs(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("no inputs %q: %v", pattern, err)
	}
	return paths
}

func stem(path string) string { return path[:strings.LastIndex(path, ".in.")] }

var testMesh = mesh{clusterID: defaultClusterID, trustDomain: defaultTrustDomain, rootNamespace: defaultRootNamespace, dnsDomain: defaultDNSDomain}

func TestTranslationIsIstiods(t *testing.T) {
	for _, path := range inputs(t, "testdata/translate/*.in.yaml") {
		t.Run(filepath.Base(stem(path)), func(t *testing.T) {
			s, translated := mustTranslate(t, path)
			golden(t, stem(path)+".want.json", describe(t, s, translated))
		})
	}
}

// mustTranslate reads one file as if it were the manifests folder.
func mustTranslate(t *testing.T, path string) (*Snapshot, *translation) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	objs, ferr := parseFile(filepath.Base(path), data)
	if ferr != nil {
		t.Fatal(ferr)
	}
	s := snapshot(&folder{files: map[string]*file{path: {path: path, objs: objs}}}, &folder{})
	if len(s.Errors) > 0 {
		t.Fatal(s.Errors)
	}
	return s, testMesh.translate(s)
}

// describe renders a translation as JSON that is the same every time, which protojson's own is not.
func describe(t *testing.T, s *Snapshot, tr *translation) []byte {
	t.Helper()
	out := struct {
		Workloads, Services, Policies []json.RawMessage
		Warnings                      []string
	}{Workloads: protoJSON(t, tr.workloads), Services: protoJSON(t, tr.services), Policies: protoJSON(t, tr.policies)}
	for _, w := range append(s.Warnings, tr.warnings...) {
		out.Warnings = append(out.Warnings, w.Error())
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(out); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func protoJSON[M proto.Message](t *testing.T, messages []M) []json.RawMessage {
	t.Helper()
	out := []json.RawMessage{}
	for _, m := range messages {
		b, err := protojson.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

func TestBadManifestsAreNamedWithFileAndLine(t *testing.T) {
	for _, path := range inputs(t, "testdata/invalid/*.in.*") {
		t.Run(filepath.Base(stem(path)), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			_, ferr := parseFile("manifests/"+filepath.Base(path), data)
			if ferr == nil {
				t.Fatal("got no error")
			}
			golden(t, stem(path)+".want.error", []byte(ferr.Error()+"\n"))
		})
	}
}

func FuzzParseFile(f *testing.F) {
	for _, pattern := range []string{"testdata/translate/*.in.yaml", "testdata/invalid/*.in.*"} {
		paths, _ := filepath.Glob(pattern)
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	// Keys that a field path, once printed, cannot tell from steps of its own.
	for _, key := range []string{"containers.-1", "containers[-1]", "containers.0", "containers[99999999999999999999]", "[", "..", "-1"} {
		f.Add(fmt.Appendf(nil, "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: demo}\nspec: {%q: x, containers: [{name: a}]}\n", key))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		objs, ferr := parseFile("x.yaml", data)
		if ferr != nil {
			if lines := bytes.Count(data, []byte("\n")) + 1; ferr.Line > lines {
				t.Fatalf("%v, but the file has %d lines", ferr, lines)
			}
			return
		}
		// What parses must translate and encode: nothing is checked twice.
		s := snapshot(&folder{files: map[string]*file{"x": {path: "x", objs: objs}}}, &folder{})
		if _, err := newResources(1, testMesh.translate(s)); err != nil {
			t.Fatal(err)
		}
	})
}
