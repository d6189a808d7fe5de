// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
)

const (
	// maxOpen bounds the open flows that are kept, over all pods. Beyond, those that were silent for longest go: their end
	// may be among the events that were lost.
	maxOpen = 1 << 16
	// maxEnded bounds the ended flows that are kept of each pod.
	maxEnded = 64
	// subscriberEvents is how many events wait for a slow reader.
	subscriberEvents = 1024
	// refreshEvery bounds how often the pods are listed to find the owner of a namespace.
	refreshEvery = time.Second
)

// Source is where events come from; [bpf.FlowReader].
type Source interface {
	Read(*bpf.FlowEvent) error
	Close() error
	Lost() (uint64, error)
}

// Table is the node's connections. Safe for concurrent use.
type Table struct {
	pods func() ([]bpf.PodInfo, error)
	log  *slog.Logger

	mu        sync.Mutex
	open      map[uint64]*Flow
	ended     map[uint64][]Flow // by netns cookie, oldest first
	owners    map[uint64]owner
	refreshed time.Time
	subs      map[*subscriber]bool
	figures   figures
	source    Source
}

// New returns an empty table. pods lists the enrolled pods.
func New(pods func() ([]bpf.PodInfo, error), log *slog.Logger) *Table {
	return &Table{
		pods: pods, log: log, open: map[uint64]*Flow{}, ended: map[uint64][]Flow{}, owners: map[uint64]owner{},
		subs: map[*subscriber]bool{}, figures: newFigures(),
	}
}

// Run reads src until ctx ends, and closes it.
func (t *Table) Run(ctx context.Context, src Source) error {
	t.mu.Lock()
	t.source = src
	t.mu.Unlock()
	defer context.AfterFunc(ctx, func() { _ = src.Close() })()
	for {
		var e bpf.FlowEvent
		switch err := src.Read(&e); {
		case err == nil:
			t.take(&e)
		case ctx.Err() != nil || errors.Is(err, os.ErrClosed):
			return nil
		default:
			t.log.Warn("flow event skipped", "err", err)
			select { // whatever it is, it must not keep a processor busy
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// take notes one event and tells the subscribers.
func (t *Table) take(e *bpf.FlowEvent) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := newFlow(e, t.ownerOf(e.NetnsCookie))
	old := t.open[e.Socket]
	// Without an opening, which may just have been missed, the state tells.
	f.Refused = e.Kind == bpf.FlowClose && old == nil && (e.State == "syn-sent" || e.State == "syn-recv")
	t.figures.count(old, &f)
	switch {
	case e.Kind == bpf.FlowClose:
		delete(t.open, e.Socket)
		list := append(t.ended[e.NetnsCookie], f)
		t.ended[e.NetnsCookie] = list[max(0, len(list)-maxEnded):]
	default:
		if old == nil && len(t.open) >= maxOpen {
			t.forgetSilent()
		}
		if old == nil {
			old = new(Flow)
			t.open[e.Socket] = old
		}
		*old = f
	}
	for s := range t.subs {
		s.offer(f)
	}
}

// ownerOf finds the pod of a namespace. A pod that just came is not known yet; one that left is still.
func (t *Table) ownerOf(cookie uint64) owner {
	if o, ok := t.owners[cookie]; ok || time.Since(t.refreshed) < refreshEvery {
		return o
	}
	t.refreshed = time.Now()
	infos, err := t.pods()
	if err != nil {
		t.log.Warn("list pods for flows", "err", err)
		return owner{}
	}
	live := map[uint64]owner{}
	for _, i := range infos {
		live[i.NetnsCookie] = owner{i.Namespace, i.Name, i.UID}
	}
	for gone := range t.ended {
		if _, ok := live[gone]; !ok && gone != cookie {
			delete(t.ended, gone)
		}
	}
	for socket, f := range t.open {
		if _, ok := live[f.cookie]; !ok && f.cookie != cookie {
			delete(t.open, socket) // its namespace ended with it, and may not have told
		}
	}
	t.owners = live
	return live[cookie]
}

// forgetSilent makes room by a quarter, so that the next time is long off.
func (t *Table) forgetSilent() {
	sockets := slices.SortedFunc(maps.Keys(t.open), func(a, b uint64) int { return t.open[a].At.Compare(t.open[b].At) })
	for _, socket := range sockets[:len(sockets)/4+1] {
		delete(t.open, socket)
	}
}

// Snapshot returns the flows that are kept, by time.
func (t *Table) Snapshot() []Flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.snapshotLocked()
}

func (t *Table) snapshotLocked() []Flow {
	all := make([]Flow, 0, len(t.open))
	for _, f := range t.open {
		all = append(all, *f)
	}
	for _, list := range t.ended {
		all = append(all, list...)
	}
	for i := range all { // those of a pod's first second
		if f := &all[i]; f.UID == "" {
			o := t.ownerOf(f.cookie)
			f.Namespace, f.Pod, f.UID = o.namespace, o.name, o.uid
		}
	}
	slices.SortFunc(all, func(a, b Flow) int { return a.At.Compare(b.At) })
	return all
}

// subscriber is a reader of the stream.
type subscriber struct {
	events chan Flow
	missed uint64
}

// offer gives the flow to the reader, or counts it as missed. The table's lock is held.
func (s *subscriber) offer(f Flow) {
	f.Missed = s.missed
	select {
	case s.events <- f:
		s.missed = 0
	default:
		s.missed++
	}
}

// Follow calls send for each flow that is kept, then, if follow is set, for each event from then on, until ctx ends or
// send fails. A reader that is slow misses events, and is told how many.
func (t *Table) Follow(ctx context.Context, follow bool, send func(Flow) error) error {
	s := &subscriber{events: make(chan Flow, subscriberEvents)}
	t.mu.Lock()
	kept := t.snapshotLocked()
	if follow {
		t.subs[s] = true
	}
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		delete(t.subs, s)
		t.mu.Unlock()
	}()
	for _, f := range kept {
		if err := send(f); err != nil {
			return err
		}
	}
	for follow {
		select {
		case <-ctx.Done():
			return nil
		case f := <-s.events:
			if err := send(f); err != nil {
				return err
			}
		}
	}
	return nil
}
