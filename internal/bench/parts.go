// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
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
	"pingpong":    {6, (*bench).pingPong},
	"idle":        {7, (*bench).idle},
	"add":         {8, (*bench).add},
}

func partNames() []string {
	return slices.SortedFunc(maps.Keys(parts), func(a, b string) int { return parts[a].order - parts[b].order })
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func (b *bench) bulk() error {
	s := b.report.begin("Bulk transfer", "iperf3 between pods on two nodes. "+costNote, compared...)
	for _, streams := range []int{1, 16} {
		for _, direction := range []string{"client to server", "server to client"} {
			what := plural(streams, "stream") + ", " + direction
			rows := append([]row{{what: what, unit: "Gbit/s", goal: "≥ 1.5", limit: 1.5, atLeast: true}}, costRows(what, "GB")...)
			err := b.compare(s, rows, func(w way) (got []float64, err error) {
				err = retry(func() error {
					got, err = b.costed(w, func() ([]float64, float64, error) {
						rate, moved, err := b.iperf(w.ns, w.perf, streams, direction == "server to client")
						return []float64{rate}, moved / 1e9, err
					})
					return err
				})
				return got, err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) requests() error {
	s := b.report.begin("Requests on kept connections", fmt.Sprintf("HTTP requests for %d bytes from nginx, each connection with one after another, as fast as answers come. "+
		"Latency under equal load counts from the time a request was due.", pageBytes), compared...)
	for _, conns := range []int{1, 64} {
		on := plural(conns, "connection")
		rows := append([]row{
			{what: "rate, " + on, unit: "1/s", goal: "≥ 1.2", limit: 1.2, atLeast: true},
			{what: "p50, " + on, unit: "µs"}, {what: "p99, " + on, unit: "µs"},
		}, costRows(on, "10,000 requests")...)
		err := b.compare(s, rows, func(w way) ([]float64, error) {
			return b.exchanges(w, w.http, conns, newExchange, 10_000)
		})
		if err != nil {
			return err
		}
	}
	const perSecond = 2000
	rows := []row{{what: fmt.Sprintf("p99 at %d requests a second on 16 connections", perSecond), unit: "µs", goal: "≤ 0.9", limit: 0.9, atLeast: false}}
	return b.compare(s, rows, func(w way) ([]float64, error) {
		took, err := b.atRate(w, 16, perSecond)
		return []float64{microseconds(quantile(took, 0.99))}, err
	})
}

// exchanges opens connections, keeps them busy for the span, and returns rate, p50 and p99 in µs, and processor time per
// so many exchanges. Opening the connections is not counted.
func (b *bench) exchanges(w way, to netip.AddrPort, conns int, wrap func(net.Conn) *exchange, per float64) ([]float64, error) {
	all, err := b.openAll(w, to, conns, wrap)
	defer closeAll(all)
	if err != nil {
		return nil, err
	}
	return b.costed(w, func() ([]float64, float64, error) {
		took, err := b.keepAlive(all)
		n := float64(len(took))
		return []float64{n / b.span.Seconds(), microseconds(quantile(took, 0.5)), microseconds(quantile(took, 0.99))}, n / per, err
	})
}

func (b *bench) connections() error {
	s := b.report.begin("A connection per request", "16 clients that connect, ask once and read until the server closes.", compared...)
	rows := append([]row{{what: "rate", unit: "1/s", goal: "≥ 3", limit: 3, atLeast: true}}, costRows("16 clients", "1,000 connections")...)
	return b.compare(s, rows, func(w way) ([]float64, error) {
		return b.costed(w, func() ([]float64, float64, error) {
			took, err := b.connectEach(w, 16)
			return []float64{float64(len(took)) / b.span.Seconds()}, float64(len(took)) / 1000, err
		})
	})
}

// pingBytes is the size of a message and its echo.
const pingBytes = 64

func (b *bench) pingPong() error {
	s := b.report.begin("Ping-pong", fmt.Sprintf("Messages of %d bytes to a server that sends them back; each connection has one under way at any time. "+
		"Server and clients are one process, the same for all ways.", pingBytes), compared...)
	stop, err := b.startEchoes()
	if err != nil {
		return err
	}
	defer stop()
	for _, conns := range []int{1, 64} {
		on := plural(conns, "connection")
		rows := append([]row{
			{what: "rate, " + on, unit: "1/s"},
			{what: "p50, " + on, unit: "µs"}, {what: "p99, " + on, unit: "µs"},
		}, costRows(on, "10,000 echoes")...)
		err := b.compare(s, rows, func(w way) ([]float64, error) { return b.exchanges(w, w.echo, conns, newPing, 10_000) })
		if err != nil {
			return err
		}
	}
	return nil
}
