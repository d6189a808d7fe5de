// SPDX-License-Identifier: Apache-2.0

package hbone

import "sync/atomic"

// Stats are the counters of a [Pool] or [Server], for metrics.
type Stats struct {
	Conns, Streams           int64  // now
	ConnsTotal, StreamsTotal uint64 // since the start
}

type counters struct {
	conns, streams           atomic.Int64
	connsTotal, streamsTotal atomic.Uint64
}

func (c *counters) snapshot() Stats {
	return Stats{
		Conns:        c.conns.Load(),
		Streams:      c.streams.Load(),
		ConnsTotal:   c.connsTotal.Load(),
		StreamsTotal: c.streamsTotal.Load(),
	}
}
