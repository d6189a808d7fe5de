// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// wording is something that must not stand in files whose path matches in and does not match except.
type wording struct {
	in, except *regexp.Regexp
	bad        *regexp.Regexp
	instead    string
}

var (
	goFile    = regexp.MustCompile(`\.go$`)
	testFile  = regexp.MustCompile(`_test\.go$`)
	cFile     = regexp.MustCompile(`^bpf/.*\.[ch]$`)
	notTests  = regexp.MustCompile(generated.String() + `|_test\.go$`)
	generated = regexp.MustCompile(`\.pb\.go$|_bpfe[lb]\.go$|^bpf/include/vendor/|^internal/tools/rules/`)
)

var wordings = []wording{
	{testFile, generated, regexp.MustCompile(`time\.Sleep\([^/]*$`), "wait for the thing itself (testutil.Eventually, a channel, a deadline), or say behind it // why it must sleep"},
	{goFile, generated, regexp.MustCompile(`(Errorf|errors\.New)\("([Ff]ailed to|[Ee]rror |[Cc]ould not|[Uu]nable to)`), `name the operation: "open netns %q: %w"`},
	{goFile, generated, regexp.MustCompile(`(Errorf|errors\.New)\("[^"]*\.(\\n)?"[,)]`), "an error ends without a full stop, others are appended to it"},
	{goFile, notTests, regexp.MustCompile(`strings\.Contains\(err\.Error\(\)`), "errors.Is or errors.As with a documented sentinel"},
	{cFile, generated, regexp.MustCompile(`\bbpf_printk\(`), "count a verdict"},
	{regexp.MustCompile(`\.(go|c|h|sh)$`), generated, regexp.MustCompile(`\b(TODO|FIXME|XXX)\b`), "finish it, or write it into the limits of the README"},
}

// checkWordings greps the files that git knows.
func checkWordings(root string) (offences []string, err error) {
	cmd := exec.Command("git", "ls-files", "-z")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("git ls-files: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		data, err := os.ReadFile(filepath.Join(root, name))
		if os.IsNotExist(err) {
			continue // deleted, not yet committed
		} else if err != nil {
			return nil, err
		}
		offences = append(offences, checkFile(name, data)...)
	}
	return offences, nil
}

// checkFile holds one file against all rules.
func checkFile(name string, data []byte) (offences []string) {
	first, _, _ := bytes.Cut(data, []byte("\n"))
	if goFile.MatchString(name) && !generated.MatchString(name) && !bytes.Contains(first, []byte("SPDX-License-Identifier: Apache-2.0")) {
		offences = append(offences, name+":1: begin with // SPDX-License-Identifier: Apache-2.0")
	}
	if strings.HasSuffix(name, ".bpf.c") && string(first) != "//go:build ignore" {
		offences = append(offences, name+":1: begin with //go:build ignore, or Go refuses the package")
	}
	for _, w := range wordings {
		// Inside a synctest bubble time is not real and Sleep waits for nothing.
		if w.in == testFile && bytes.Contains(data, []byte(`"testing/synctest"`)) || !w.in.MatchString(name) || w.except.MatchString(name) {
			continue
		}
		for i, line := range bytes.Split(data, []byte("\n")) {
			if m := w.bad.Find(line); m != nil {
				offences = append(offences, fmt.Sprintf("%s:%d: %q: %s", name, i+1, m, w.instead))
			}
		}
	}
	return offences
}
