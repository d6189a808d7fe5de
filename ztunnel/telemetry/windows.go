// SPDX-License-Identifier: Apache-2.0

package telemetry

import "github.com/prometheus/client_golang/prometheus"

// Windows are the bytes that windows of tunnels hold above their least, and how often one got less than it asked for.
type Windows interface {
	Memory() (lent int64, short uint64)
}

// ShowWindows adds w to the metrics, and limit, in bytes, if it is not 0. Call it once.
func (m *Metrics) ShowWindows(w Windows, limit int64) {
	gauge := func(name, help string, read func() float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read))
	}
	gauge("sluice_window_bytes", "What tunnels may hold unread above 64 KiB each.", func() float64 {
		lent, _ := w.Memory()
		return float64(lent)
	})
	gauge("sluice_window_limit_bytes", "The most that sluice_window_bytes may be; 0 for no limit.", func() float64 { return float64(limit) })
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "sluice_windows_held_back_total", Help: "Windows that opened less than they would have, for want of memory.",
	}, func() float64 {
		_, short := w.Memory()
		return float64(short)
	}))
}
