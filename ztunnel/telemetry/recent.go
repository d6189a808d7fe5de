// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// maxRecent is how many ended connections are remembered.
const maxRecent = 512

// Recent is a connection that ended, as /debug/connections shows it. The fields are those of the access log.
type Recent struct {
	At          time.Time      `json:"at"`
	Direction   Direction      `json:"direction"`
	Src         netip.AddrPort `json:"src"`
	SrcIdentity string         `json:"srcIdentity,omitempty"`
	Dst         netip.AddrPort `json:"dst"`
	DstIdentity string         `json:"dstIdentity,omitempty"`
	HBONEAddr   string         `json:"hboneAddr,omitempty"`
	Service     string         `json:"service,omitempty"`
	Sent        uint64         `json:"sent"`
	Received    uint64         `json:"received"`
	Verdict     string         `json:"verdict"`
	Policy      string         `json:"policy,omitempty"`
	Error       string         `json:"error,omitempty"`
}

// recent is a ring of the last connections.
type recent struct {
	mu   sync.Mutex
	all  []Recent
	next int
}

func (r *recent) add(a *Access) {
	one := Recent{
		At: time.Now(), Direction: a.Direction, Src: a.Src.Addr, SrcIdentity: a.Src.Identity, Dst: a.Dst.Addr, DstIdentity: a.Dst.Identity,
		HBONEAddr: a.HBONEAddr, Service: a.Service, Sent: a.Sent, Received: a.Received, Verdict: a.Verdict, Policy: a.Policy,
	}
	if a.Err != nil {
		one.Error = a.Err.Error()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all) < maxRecent {
		r.all = append(r.all, one)
		return
	}
	r.all[r.next] = one
	r.next = (r.next + 1) % maxRecent
}

// list returns the ring, oldest first.
func (r *recent) list() []Recent {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append(append([]Recent{}, r.all[r.next:]...), r.all[:r.next]...)
}

// Recent returns the connections that ended last, oldest first.
func (l *AccessLog) Recent() []Recent { return l.recent.list() }

func (a *Admin) connections(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	list := []Recent{}
	if a.Recent != nil {
		list = a.Recent()
	}
	if err := json.NewEncoder(w).Encode(list); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}
