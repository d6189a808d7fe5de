// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// section is one table of the report.
type section struct {
	title, note string
	header      []string
	rows        [][]string
}

type report struct {
	out      io.Writer
	sections []*section
}

// begin starts a table; the note says what is measured and how.
func (r *report) begin(title, note string, header ...string) *section {
	s := &section{title: title, note: note, header: header}
	r.sections = append(r.sections, s)
	return s
}

// add puts a row into the table and on the terminal.
func (r *report) add(s *section, cells ...string) {
	s.rows = append(s.rows, cells)
	fmt.Fprintf(r.out, "bench:   %s\n", strings.Join(cells, " | "))
}

// median is the middle of the samples.
func median(samples []float64) float64 {
	sorted := slices.Sorted(slices.Values(samples))
	if len(sorted) == 0 {
		return 0
	}
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// quantile returns the value below which q of the samples are.
func quantile(samples []time.Duration, q float64) time.Duration {
	if len(samples) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(samples))
	return sorted[min(int(float64(len(sorted))*q), len(sorted)-1)]
}

// verdict holds a ratio against its goal: "≥ 1.5 met".
func verdict(ratio float64, goal string, limit float64, atLeast bool) string {
	if (ratio >= limit) == atLeast {
		return goal + " met"
	}
	return goal + " not met"
}

func (r *report) write(c *config) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Benchmarks\n\nWritten by `sudo make bench`; repeat it with that. Each figure is the median of %d rounds of %v in which the sides take\n"+
		"turns. Absolute figures belong to the machine; ratios are what is aimed at (goals in the last column).\n\n%s\n", c.rounds, c.span, machine())
	for _, s := range r.sections {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| %s |\n|%s\n", s.title, s.note, strings.Join(s.header, " | "), strings.Repeat("---|", len(s.header)))
		for _, row := range s.rows {
			fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
		}
	}
	if err := c.appendGoBench(&b); err != nil {
		return err
	}
	return os.WriteFile(c.out, b.Bytes(), 0o644)
}

// appendGoBench adds the result lines of go test -bench.
func (c *config) appendGoBench(b *bytes.Buffer) error {
	if c.goBench == "" {
		return nil
	}
	data, err := os.ReadFile(c.goBench)
	if err != nil {
		return err
	}
	fmt.Fprintf(b, "\n## Parts\n\n`go test -bench` of datapath and proxy; the programs' rows are what one packet costs in the kernel.\n\n```\n")
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "Benchmark") || strings.HasPrefix(line, "pkg:") {
			b.WriteString(line)
		}
	}
	b.WriteString("```\n")
	return nil
}

// machine describes what the figures were taken on.
func machine() string {
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	model, cores := "unknown processor", 0
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if key, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(key) == "model name" {
				model = strings.TrimSpace(value)
				cores++
			}
		}
	}
	return fmt.Sprintf("Machine: %s, %d cores that both nodes, all proxies, servers and load generators share; Linux %s. A virtual machine: expect noise.",
		model, cores, unix.ByteSliceToString(uts.Release[:]))
}
