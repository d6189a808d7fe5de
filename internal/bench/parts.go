// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// part measures one thing. order keeps the report readable.
type part struct {
	order int
	run   func(*bench) error
}

var parts = map[string]part{
	"pods":        {1, (*bench).pods}, // first: the proxies' memory has not grown yet
	"passthrough": {2, (*bench).passthrough},
	"bulk":        {3, (*bench).bulk},
	"requests":    {4, (*bench).requests},
	"connections": {5, (*bench).connections},
	"idle":        {6, (*bench).idle},
	"add":         {7, (*bench).add},
}

func partNames() []string {
	return slices.SortedFunc(maps.Keys(parts), func(a, b string) int { return parts[a].order - parts[b].order })
}

// rotate runs measure for each way in turn, as many rounds as asked for, and returns the samples of each.
func (b *bench) rotate(ways []way, measure func(way) (float64, error)) ([][]float64, error) {
	samples := make([][]float64, len(ways))
	for range b.rounds {
		for i, w := range ways {
			if err := b.ctx.Err(); err != nil {
				return nil, err
			}
			got, err := measure(w)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", w.name, err)
			}
			samples[i] = append(samples[i], got)
		}
	}
	return samples, nil
}

// compared are the columns of tables over ways().
var compared = []string{"what", "unit", "sluice", "haproxy pair", "direct", "sluice / haproxy", "goal", "sluice / direct"}

// compare measures over all ways and adds the row.
func (b *bench) compare(s *section, what, unit, goal string, limit float64, atLeast bool, measure func(way) (float64, error)) error {
	samples, err := b.rotate(b.ways(), measure)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	ours, theirs, direct := median(samples[0]), median(samples[1]), median(samples[2])
	if goal != "" {
		goal = verdict(ours/theirs, goal, limit, atLeast)
	}
	b.report.add(s, what, unit, number(ours), number(theirs), number(direct), number(ours/theirs), goal, number(ours/direct))
	return nil
}

// number prints three digits or so.
func number(v float64) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (b *bench) bulk() error {
	s := b.report.begin("Bulk transfer", "iperf3 between pods on two nodes. haproxy pair: "+haproxyVersion(b)+
		", TCP to TLS 1.3 (AES-128-GCM, both ends authenticated) to TCP, one in each pod.", compared...)
	for _, streams := range []int{1, 16} {
		for _, reverse := range []bool{false, true} {
			what := fmt.Sprintf("%d streams, client to server", streams)
			if reverse {
				what = fmt.Sprintf("%d streams, server to client", streams)
			}
			err := b.compare(s, what, "Gbit/s", "≥ 1.5", 1.5, true, func(w way) (float64, error) {
				return b.iperf(w.ns, w.perf, streams, reverse)
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) requests() error {
	s := b.report.begin("Requests on kept connections", fmt.Sprintf("HTTP requests for %d bytes from nginx. Latency under equal load counts from the time a request was due.", pageBytes), compared...)
	for _, conns := range []int{1, 64} {
		err := b.compare(s, fmt.Sprintf("rate, %d connections", conns), "1/s", "≥ 1.2", 1.2, true, func(w way) (float64, error) {
			took, err := b.keepAlive(w, conns)
			return float64(len(took)) / b.span.Seconds(), err
		})
		if err != nil {
			return err
		}
	}
	for _, q := range []struct {
		name string
		q    float64
	}{{"p50", 0.5}, {"p99", 0.99}} {
		if err := b.roundTrip(s, q.name, q.q); err != nil {
			return err
		}
	}
	const perSecond = 2000
	return b.compare(s, fmt.Sprintf("p99 at %d requests a second on 16 connections", perSecond), "µs", "≤ 0.9", 0.9, false, func(w way) (float64, error) {
		took, err := b.atRate(w, 16, perSecond)
		return float64(quantile(took, 0.99).Microseconds()), err
	})
}

func (b *bench) roundTrip(s *section, name string, q float64) error {
	return b.compare(s, name+" of one request after another", "µs", "", 0, false, func(w way) (float64, error) {
		took, err := b.keepAlive(w, 1)
		return float64(quantile(took, q).Nanoseconds()) / float64(time.Microsecond), err
	})
}

func (b *bench) connections() error {
	s := b.report.begin("A connection per request", "16 clients that connect, ask once and read until the server closes.", compared...)
	return b.compare(s, "rate", "1/s", "≥ 3", 3, true, func(w way) (float64, error) {
		took, err := b.connectEach(w, 16)
		return float64(len(took)) / b.span.Seconds(), err
	})
}
