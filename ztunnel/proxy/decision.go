// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"log/slog"

	"github.com/sluice-mesh/sluice/ztunnel/policy"
)

// logDecision notes what policies said of a connection, and what those that are not enforced would have.
func (p *podProxy) logDecision(d policy.Decision, input policy.Input) {
	level := slog.LevelDebug
	if p.InfoPolicies {
		level = slog.LevelInfo
	}
	if !p.log.Enabled(p.ctx, level) {
		return
	}
	p.log.Log(p.ctx, level, "policies decided", "allow", d.Allow, "policy", d.Policy, "reason", d.Reason, "src.addr", input.SourceIP, "dst.addr", input.Dest)
	for _, name := range d.DryRun {
		p.log.Log(p.ctx, level, "policy matches, but is not enforced", "policy", name, "src.addr", input.SourceIP, "dst.addr", input.Dest)
	}
}
