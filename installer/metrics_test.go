// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/installer/enroll"
)

func TestVerdictSumsNeverGoBack(t *testing.T) {
	var s sums
	a, b := controlplane.Name{Namespace: "ns", Name: "a"}, controlplane.Name{Namespace: "ns", Name: "b"}
	captured := func(n uint64) enroll.Figures { return enroll.Figures{Verdicts: map[string]uint64{"captured": n}} }
	for i, step := range []struct {
		pods map[controlplane.Name]enroll.Figures
		want uint64
	}{
		{nil, 0},
		{map[controlplane.Name]enroll.Figures{a: captured(5), b: captured(10)}, 15},
		{map[controlplane.Name]enroll.Figures{a: captured(6), b: captured(10)}, 16},
		{map[controlplane.Name]enroll.Figures{a: captured(7)}, 17},                 // b is gone
		{map[controlplane.Name]enroll.Figures{a: captured(2), b: captured(3)}, 22}, // both anew
	} {
		if s.take(step.pods); s.total["captured"] != step.want {
			t.Errorf("step %d: got %d, want %d", i, s.total["captured"], step.want)
		}
	}
	if n := len(s.total); n != len(bpf.AllVerdicts()) {
		t.Errorf("got %d verdicts, want all %d from the beginning", n, len(bpf.AllVerdicts()))
	}
}
