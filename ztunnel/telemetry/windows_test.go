// SPDX-License-Identifier: Apache-2.0

package telemetry

import "testing"

type fixedWindows struct{}

func (fixedWindows) Memory() (int64, uint64) { return 70000, 3 }

func TestWindowsAreShown(t *testing.T) {
	m := NewMetrics("test")
	m.ShowWindows(fixedWindows{}, 90000)
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		if sample := f.GetMetric()[0]; f.GetName() == "sluice_windows_held_back_total" {
			got[f.GetName()] = sample.GetCounter().GetValue()
		} else if g := sample.GetGauge(); g != nil {
			got[f.GetName()] = g.GetValue()
		}
	}
	for name, want := range map[string]float64{
		"sluice_window_bytes": 70000, "sluice_window_limit_bytes": 90000, "sluice_windows_held_back_total": 3,
	} {
		if got[name] != want {
			t.Errorf("%s: got %g, want %g", name, got[name], want)
		}
	}
}
