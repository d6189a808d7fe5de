// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// compared are the columns of tables over the ways.
var compared = []string{"what", "unit", "sluice", "haproxy pair", "nginx pair", "direct", "sluice / haproxy", "sluice / nginx", "goal", "sluice / direct"}

// costNote explains the rows of costRows.
const costNote = "Processor time of the proxies is user and system time of both, with the interrupts that the kernel counts as theirs; " +
	"of the machine, everything that was not idle, so servers, load generators and both nodes' networks too: that is what a node pays, " +
	"as long as nothing else runs."

// row is one figure for each way. The goal is for the ratio to the haproxy pair; empty: none. most is a goal for our own
// figure, in the row's unit; 0: none.
type row struct {
	what, unit, goal string
	limit            float64
	atLeast          bool
	most             float64
}

// rotate runs measure for each way in turn, as many rounds as asked for, and returns each way's samples, a slice per
// figure that measure returns.
func (b *bench) rotate(ways []way, measure func(way) ([]float64, error)) (map[string][][]float64, error) {
	samples := map[string][][]float64{}
	for range b.rounds {
		for _, w := range ways {
			if err := b.ctx.Err(); err != nil {
				return nil, err
			}
			got, err := measure(w)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", w.name, err)
			}
			if samples[w.name] == nil {
				samples[w.name] = make([][]float64, len(got))
			}
			for i, figure := range got {
				samples[w.name][i] = append(samples[w.name][i], figure)
			}
		}
	}
	return samples, nil
}

// compare measures over all ways and adds the rows, one for each figure that measure returns.
func (b *bench) compare(s *section, rows []row, measure func(way) ([]float64, error)) error {
	samples, err := b.rotate(b.ways(), measure)
	if err != nil {
		return fmt.Errorf("%s: %w", rows[0].what, err)
	}
	for i, r := range rows {
		figures := map[string]float64{}
		for name, all := range samples {
			figures[name] = median(all[i])
		}
		b.addCompared(s, r, figures)
	}
	return nil
}

// addCompared adds a row of figures by way; ways that were not measured have none.
func (b *bench) addCompared(s *section, r row, figures map[string]float64) {
	of := func(name string) float64 {
		if v, ok := figures[name]; ok {
			return v
		}
		return math.NaN()
	}
	ours, haproxy, nginx, direct := of("sluice"), of("haproxy"), of("nginx"), of("direct")
	var goals []string
	if r.goal != "" && !math.IsNaN(ours/haproxy) {
		goals = append(goals, verdict(ours/haproxy, r.goal, r.limit, r.atLeast))
	}
	if r.most > 0 && !math.IsNaN(ours) {
		goals = append(goals, verdict(ours, fmt.Sprintf("≤ %g %s", r.most, r.unit), r.most, false))
	}
	b.report.add(s, r.what, r.unit, number(ours), number(haproxy), number(nginx), number(direct),
		number(ours/haproxy), number(ours/nginx), strings.Join(goals, ", "), number(ours/direct))
}

// number prints three digits or so; a dash for what there is not.
func number(v float64) string {
	switch {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return "–"
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func microseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
