// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
)

// captureSet is the kernel's set of addresses whose traffic is captured; [bpf.Destinations] in life.
type captureSet interface {
	Add(...netip.Addr) error
	Remove(...netip.Addr) error
	List() ([]netip.Addr, error)
	// SetComplete says whether an address that is not in the set is known to be outside the mesh. While false the
	// kernel captures everything.
	SetComplete(bool) error
	// IsCurrent is false once an agent of another release has put a successor in the set's place.
	IsCurrent() (bool, error)
	Close() error
}

// destinations keeps the kernel's set equal to what discovery wants captured. It is the set's writer; during an upgrade
// there are two, which agree because both follow the same control plane and the old one stops when it drains.
type destinations struct {
	set   captureSet
	open  func() (captureSet, error) // the successor of set
	want  func() discovery.CaptureSet
	size  prometheus.Gauge
	log   *slog.Logger
	retry time.Duration // after an error; 0 means 1 s
	audit time.Duration // how often the whole set is read; 0 means 10 s

	have     map[netip.Addr]bool // nil until the first pass
	complete bool                // what was last written
}

// run follows until ctx ends. It leaves the set as it is: the last state stays in force.
//
// The caller runs it only after the first full state arrived. From then on changes says when want may answer otherwise.
func (d *destinations) run(ctx context.Context, changes *discovery.Subscription) {
	defer changes.Close()
	wait := cmp.Or(d.retry, time.Second)
	audit := time.NewTicker(cmp.Or(d.audit, 10*time.Second))
	defer audit.Stop()
	for {
		var again <-chan time.Time
		if err := d.pass(); err != nil {
			d.log.Error("addresses to capture are not up to date", "error", err, "retry", wait)
			d.have = nil // what is in the set is unknown now
			again = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-changes.C():
			changes.Take()
		case <-again:
		case <-audit.C:
			// The other writer of an upgrade may have been late with a removal that was taken back since.
			d.have = nil
		}
	}
}

// pass makes the set that is in force equal to want. Whether it still is in force is asked when all of it is read.
func (d *destinations) pass() error {
	if d.have == nil {
		if err := d.follow(); err != nil {
			return err
		}
	}
	return d.sync()
}

// follow goes over to the set's successor if it has one. Nobody keeps the old one any more, so programs that still read
// it are told to capture everything; also while the successor cannot be opened.
func (d *destinations) follow() error {
	current, err := d.set.IsCurrent()
	if err != nil {
		return fmt.Errorf("look for successors of destinations: %w", err)
	}
	if current {
		return nil
	}
	if err := d.set.SetComplete(false); err != nil {
		return fmt.Errorf("leave old destinations: %w", err)
	}
	next, err := d.open()
	if err != nil {
		return fmt.Errorf("everything is captured: the agent replaced the set of destinations: %w", err)
	}
	d.log.Info("the agent replaced the set of destinations; following")
	_ = d.set.Close()
	d.set, d.complete = next, false
	return nil
}

// sync makes the set equal to want.
//
// Additions come first and the set is declared complete last, so at no time is an address of the mesh taken for one
// outside of it. Strays of an earlier ztunnel are removed by a pass that reads the whole
// set, of which the first is one.
func (d *destinations) sync() error {
	wanted := d.want()
	want := map[netip.Addr]bool{}
	for _, a := range wanted.Addrs {
		want[a] = true
	}
	first := d.have == nil
	have := d.have
	if first {
		present, err := d.set.List()
		if err != nil {
			return fmt.Errorf("list destinations: %w", err)
		}
		have = map[netip.Addr]bool{}
		for _, a := range present {
			have[a] = true
		}
	}
	if !wanted.Complete && (first || d.complete) {
		// There are destinations that the set cannot name: first no longer rely on it.
		if err := d.set.SetComplete(false); err != nil {
			return fmt.Errorf("update destinations: %w", err)
		}
	}
	err := errors.Join(d.set.Add(missing(want, have)...), d.set.Remove(missing(have, want)...))
	if err == nil && wanted.Complete && (first || !d.complete) {
		err = d.set.SetComplete(true)
	}
	if err != nil {
		return fmt.Errorf("update destinations: %w", err)
	}
	d.have, d.complete = want, wanted.Complete
	d.size.Set(float64(len(want)))
	return nil
}

// missing lists what is in a and not in b.
func missing(a, b map[netip.Addr]bool) []netip.Addr {
	var out []netip.Addr
	for addr := range a {
		if !b[addr] {
			out = append(out, addr)
		}
	}
	return out
}
