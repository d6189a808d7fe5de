// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"time"
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
		return math.NaN()
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

func (b *bench) writeReport() error {
	var text bytes.Buffer
	fmt.Fprintf(&text, "# Benchmarks\n\nWritten by `sudo make bench`; repeat it with that. Each figure is the median of %d rounds of %v in which the sides take\n"+
		"turns. Absolute figures belong to the machine; ratios are what is aimed at (goals for the ratio to the haproxy pair).\n\n%s\n\n%s\n\n%s\n",
		b.rounds, b.span, machine(), b.versions(), pairsNote)
	for _, s := range b.report.sections {
		fmt.Fprintf(&text, "\n## %s\n\n%s\n\n| %s |\n|%s\n", s.title, s.note, strings.Join(s.header, " | "), strings.Repeat("---|", len(s.header)))
		for _, row := range s.rows {
			fmt.Fprintf(&text, "| %s |\n", strings.Join(row, " | "))
		}
	}
	if err := b.appendGoBench(&text); err != nil {
		return err
	}
	return os.WriteFile(b.out, text.Bytes(), 0o644)
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
