// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"testing"
)

func TestHostProgramsLoad(t *testing.T) {
	w := newWorld(t)
	var s HostStatus
	w.host.MustDo(t, func() (err error) {
		s, err = w.AttachHost(HostConfig{Flows: true, Bind: true, Probe: true})
		return err
	})
	t.Cleanup(func() {
		if err := w.DetachHost(); err != nil {
			t.Error(err)
		}
	})
	for _, h := range []HookStatus{s.Probe, s.Bind, s.Flows} {
		if !h.Attached || h.Problem != "" {
			t.Errorf("%+v", h)
		}
	}
}
