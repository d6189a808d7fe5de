// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"time"

	"github.com/sluice-mesh/sluice/bpf"
)

// hostRetry is how long a program of the host that could not be attached is left alone.
const hostRetry = time.Minute

// host is what is known of the programs that serve the node as a whole. Guarded by Enroller.mu.
type host struct {
	status  bpf.HostStatus
	problem string // why status may not be true
	tried   time.Time
}

// repairHost attaches the programs of the host if that was not done yet, or if they are not as they were left. Where
// they cannot be had is no error of the mesh's: status has the reason.
func (e *Enroller) repairHost() {
	e.mu.Lock()
	last := e.host
	e.mu.Unlock()
	now, err := e.cfg.Node.HostStatus()
	isDue := time.Since(last.tried) > hostRetry && (last.problem != "" || lacks(&e.cfg.Host, &now))
	if !last.tried.IsZero() && err == nil && now == last.status && !isDue {
		return
	}
	next := host{tried: time.Now()}
	if next.status, err = e.cfg.Node.AttachHost(e.cfg.Host); err != nil {
		next.problem = err.Error()
	}
	if next.problem != last.problem || next.status != last.status {
		e.log.Info("programs of the host", "probe", next.status.Probe, "bind", next.status.Bind, "flows", next.status.Flows, "problem", next.problem)
	}
	fault("host attached")
	e.mu.Lock()
	defer e.mu.Unlock()
	e.host = next
}

// lacks reports whether something that is wanted is not attached.
func lacks(c *bpf.HostConfig, s *bpf.HostStatus) bool {
	return c.Probe && !s.Probe.Attached || c.Bind && !s.Bind.Attached || c.Flows && !s.Flows.Attached
}

// hostStatus looks at the programs of the host as they are now.
func (e *Enroller) hostStatus() (status bpf.HostStatus, problem string) {
	e.mu.Lock()
	problem = e.host.problem
	e.mu.Unlock()
	status, err := e.cfg.Node.HostStatus()
	if err != nil {
		problem = err.Error()
	}
	return status, problem
}
