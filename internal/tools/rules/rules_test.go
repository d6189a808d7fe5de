// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

func TestWrongImport(t *testing.T) {
	for _, tt := range []struct {
		name, path string
		test       bool
		want       string // part of the message; "" = allowed
	}{
		{"bpf", "github.com/cilium/ebpf", false, ""},
		{"plugin", "github.com/cilium/ebpf/link", false, "only bpf may"},
		{"plugin", module + "bpf", false, ""},
		{"plugin", module + "ztunnel/proxy", false, "plugin may import of ours only"},
		{"ztunnel", module + "ztunnel/proxy", false, ""},
		{"ztunnel/hbone", module + "ztunnel/proxy", false, "may import of ours only"},
		{"ztunnel/hbone", module + "ztunnel/identity", true, ""},
		{"ztunnel/policy", module + "ztunnel/discovery", false, ""},
		{"ztunnel/proxy", module + "installer/enroll", false, "may import of ours only"},
		{"installer/enroll", module + "internal/testutil", false, "_test.go files only"},
		{"installer/enroll", module + "internal/testutil", true, ""},
		{"internal/zds", module + "internal/netns", false, "may import of ours only"},
		{"docs", module + "bpf", false, "has no line"},
		{"plugin", "fmt", false, ""},
	} {
		got := wrongImport(tt.name, tt.path, tt.test)
		if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
			t.Errorf("wrongImport(%q, %q, test=%v): got %q, want %q", tt.name, tt.path, tt.test, got, tt.want)
		}
	}
}

func TestCheckFile(t *testing.T) {
	const spdx = "// SPDX-License-Identifier: Apache-2.0\n"
	for _, tt := range []struct{ file, content, want string }{
		{"a/a.go", "package a\n", "SPDX"},
		{"a/a.go", spdx + "package a\n", ""},
		{"a/a_test.go", spdx + "time.Sleep(1)\n", "a/a_test.go:2"},
		{"a/a.go", spdx + "time.Sleep(1)\n", ""},
		{"a/a.go", spdx + `fmt.Errorf("failed to open: %w", err)`, "name the operation"},
		{"a/a.go", spdx + `errors.New("no such pod.")`, "full stop"},
		{"bpf/x.bpf.c", "/* x */", "go:build ignore"},
		{"bpf/x.bpf.c", "//go:build ignore\nbpf_printk(\"x\");\n", "count a verdict"},
		{"a/a.go", spdx + "// FIXME\n", "finish it"},
	} {
		got := strings.Join(checkFile(tt.file, []byte(tt.content)), "\n")
		if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
			t.Errorf("checkFile(%q, %q): got %q, want %q", tt.file, tt.content, got, tt.want)
		}
	}
}
