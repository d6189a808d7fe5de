// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

const module = "github.com/sluice-mesh/sluice/"

// pkg is what is used of "go list -json".
type pkg struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

// allowed says which of our packages a package may import. A trailing slash stands for everything below; the longest
// matching key counts. Packages below internal that are not listed may import none of ours.
var allowed = map[string][]string{
	"bpf":                  {"internal/netns"},
	"plugin":               {"bpf", "internal/netns", "internal/nodeapi"},
	"ztunnel/":             {"ztunnel/", "bpf", "internal/netns", "internal/zds", "internal/nodeapi", "internal/workloadapi", "internal/securityapi"},
	"ztunnel/hbone":        {},
	"ztunnel/identity":     {},
	"ztunnel/policy":       {"ztunnel/discovery"},
	"installer/":           {"installer/", "bpf", "internal/atomicfile", "internal/unixsock", "internal/netns", "internal/nodeapi", "internal/zds", "internal/workloadapi", "internal/securityapi"},
	"internal/":            {},
	"internal/nodeapi":     {"internal/atomicfile", "internal/unixsock"},
	"internal/zds":         {"internal/unixsock"},
	"internal/testutil":    {"internal/netns"},
	"internal/lab":         {"bpf", "internal/"},
	"internal/lab/cluster": {"internal/lab"},
	"internal/demo":        {"bpf", "internal/"},
	"internal/bench":       {"bpf", "internal/"},
	"internal/leak":        {"bpf", "internal/"},
	"internal/e2e/":        {"bpf", "internal/", "plugin", "installer/", "ztunnel/"},
}

// testOnly are packages that nothing but tests may import.
var testOnly = []string{"internal/testutil", "internal/lab/kube", "internal/lab/cluster"}

// owners are foreign modules with one package of ours that may import them.
var owners = map[string]string{"github.com/cilium/ebpf": "bpf"}

// list runs go list over the repository.
func list(root string) ([]pkg, error) {
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	cmd.Dir, cmd.Stderr = root, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	var packages []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return packages, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		packages = append(packages, p)
	}
}

// checkImports holds every import against the tables above.
func checkImports(packages []pkg) (offences []string) {
	for _, p := range packages {
		name := strings.TrimPrefix(p.ImportPath, module)
		for _, i := range p.Imports {
			if why := wrongImport(name, i, false); why != "" {
				offences = append(offences, fmt.Sprintf("%s imports %s: %s", name, strings.TrimPrefix(i, module), why))
			}
		}
		for _, i := range slices.Concat(p.TestImports, p.XTestImports) {
			if why := wrongImport(name, i, true); why != "" {
				offences = append(offences, fmt.Sprintf("%s imports %s in tests: %s", name, strings.TrimPrefix(i, module), why))
			}
		}
	}
	return offences
}

// wrongImport returns why the package may not import path; "" if it may. Tests may also import what is for tests only,
// and packages beside their own that they hold together.
func wrongImport(name, path string, test bool) string {
	for foreign, owner := range owners {
		if (path == foreign || strings.HasPrefix(path, foreign+"/")) && name != owner {
			return fmt.Sprintf("only %s may; give %s a function for it", owner, owner)
		}
	}
	target, ours := strings.CutPrefix(path, module)
	if !ours || target == name {
		return ""
	}
	if slices.Contains(testOnly, target) {
		if test || slices.Contains(testOnly, name) {
			return ""
		}
		return "it is for _test.go files only"
	}
	rule, ok := ruleFor(name)
	if !ok {
		return fmt.Sprintf("%s has no line in the table of internal/tools/rules/imports.go", name)
	}
	if test && top(name) == top(target) && top(name) != "internal" {
		return ""
	}
	if slices.ContainsFunc(rule, func(r string) bool { return covers(r, target) }) {
		return ""
	}
	return fmt.Sprintf("%s may import of ours only %v (internal/tools/rules/imports.go)", name, rule)
}

// ruleFor finds the longest key of allowed that covers name.
func ruleFor(name string) (rule []string, ok bool) {
	longest := -1
	for key, r := range allowed {
		if covers(key, name) && len(key) > longest {
			rule, ok, longest = r, true, len(key)
		}
	}
	return rule, ok
}

// covers reports whether pattern names the package, or with a trailing slash it and all below it.
func covers(pattern, name string) bool {
	return name == strings.TrimSuffix(pattern, "/") || strings.HasSuffix(pattern, "/") && strings.HasPrefix(name, pattern)
}

func top(name string) string {
	first, _, _ := strings.Cut(name, "/")
	return first
}
