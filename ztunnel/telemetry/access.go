// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"time"
)

// Direction is a connection's, seen from the pod that ztunnel serves.
type Direction string

// Outbound connections begin in the pod, inbound ones end in it.
const (
	Outbound Direction = "outbound"
	Inbound  Direction = "inbound"
)

// Endpoint is one end of a connection in the access log. Empty fields are left out.
type Endpoint struct {
	Addr      netip.AddrPort
	Workload  string
	Namespace string
	// Identity is the SPIFFE URI; empty unless the connection is mTLS.
	Identity string
	Cluster  string
}

// Access is one line of the access log: a connection, what was decided about it, and how it went.
type Access struct {
	Direction Direction
	Src, Dst  Endpoint
	// HBONEAddr is the CONNECT authority: where the connection goes behind Dst.Addr.
	HBONEAddr string
	Service   string
	// Sent and Received are as the served pod sees it: outbound, Sent is the client's request.
	Sent, Received uint64
	Duration       time.Duration
	// Verdict is the decision, and for a refusal its reason.
	Verdict string
	// Policy is the `namespace/name` of the policy that refused.
	Policy string
	Err    error
}

// AccessLog writes one line per connection, and remembers the last ones.
type AccessLog struct {
	log    *slog.Logger
	recent recent
}

// accessScope is the scope of the access log.
const accessScope = "access"

// NewAccessLog returns an access log that writes to log in the scope "access".
func NewAccessLog(log *slog.Logger) *AccessLog { return &AccessLog{log: Scope(log, accessScope)} }

// Opened notes, at level debug, a connection whose two ends are known.
func (l *AccessLog) Opened(a *Access) { l.write(slog.LevelDebug, "connection opened", a, false) }

// Complete notes the end of a connection: at level info, or error if it failed.
func (l *AccessLog) Complete(a *Access) {
	l.recent.add(a)
	level := slog.LevelInfo
	if a.Err != nil {
		level = slog.LevelError
	}
	l.write(level, "connection complete", a, true)
}

// Failed notes, at level warn, a connection refused before its two ends were known.
func (l *AccessLog) Failed(a *Access) {
	l.recent.add(a)
	l.write(slog.LevelWarn, "connection failed", a, false)
}

func (l *AccessLog) write(level slog.Level, message string, a *Access, ended bool) {
	ctx := context.Background()
	if !l.log.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 24)
	text := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	addr := func(key string, value netip.AddrPort) {
		if value.IsValid() {
			attrs = append(attrs, slog.Any(key, value))
		}
	}
	addr("src.addr", a.Src.Addr)
	text("src.workload", a.Src.Workload)
	text("src.namespace", a.Src.Namespace)
	text("src.identity", a.Src.Identity)
	text("src.cluster", a.Src.Cluster)
	addr("dst.addr", a.Dst.Addr)
	text("dst.hbone_addr", a.HBONEAddr)
	text("dst.service", a.Service)
	text("dst.workload", a.Dst.Workload)
	text("dst.namespace", a.Dst.Namespace)
	text("dst.identity", a.Dst.Identity)
	text("dst.cluster", a.Dst.Cluster)
	text("direction", string(a.Direction))
	if ended {
		attrs = append(attrs, slog.Uint64("bytes_sent", a.Sent), slog.Uint64("bytes_recv", a.Received))
		text("duration", fmt.Sprintf("%dms", a.Duration.Milliseconds()))
	}
	text("verdict", a.Verdict)
	text("policy", a.Policy)
	if a.Err != nil {
		text("error", a.Err.Error())
	}
	l.log.LogAttrs(ctx, level, message, attrs...)
}
