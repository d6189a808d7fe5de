// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/nodeapi"
	"github.com/sluice-mesh/sluice/internal/zds"
)

// ztunnel is a fake one: it speaks ZDS, asks for listeners, and says its name and the slot to whoever connects.
type ztunnel struct {
	l     *lab
	name  string
	hang  chan struct{}
	stopZ context.CancelFunc
	wg    sync.WaitGroup

	mu     sync.Mutex
	refuse string // not empty: answer to Adds
	dead   bool
	pods   map[string]map[string]*net.TCPListener // uid -> slot
	events []string
	conns  map[string][]net.Conn // by uid
	// pending are pods to be tried again; named are those of the snapshot so far, nil once it is complete.
	pending, named map[string]bool
}

func (l *lab) ztunnel(name string, tune ...func(*ztunnel)) *ztunnel {
	l.t.Helper()
	z := &ztunnel{l: l, name: name, pods: map[string]map[string]*net.TCPListener{}, conns: map[string][]net.Conn{}}
	for _, f := range tune {
		f(z)
	}
	z.run()
	return z
}

// run starts z and returns once it has its snapshot. It reconnects until killed.
func (z *ztunnel) run() {
	z.l.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	z.stopZ = cancel
	z.wg.Go(func() {
		for ctx.Err() == nil {
			z.session(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	z.l.t.Cleanup(z.kill)
	z.waitEvent("snapshot")
}

// session is one connection, until it ends.
func (z *ztunnel) session(ctx context.Context) {
	c, err := zds.Dial(ctx, z.l.path("ztunnel.sock"))
	if err != nil {
		return
	}
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	defer func() { _ = c.Close() }()
	z.mu.Lock()
	z.pending, z.named = map[string]bool{}, map[string]bool{}
	z.mu.Unlock()
	if c.Send(&zds.ZdsHello{Version: zds.Version_V1}) != nil {
		return
	}
	for {
		var r zds.WorkloadRequest
		fds, err := c.Receive(&r)
		if err != nil {
			return
		}
		zds.CloseFDs(fds)
		text := ""
		if err := z.handle(ctx, &r); err != nil {
			text = err.Error()
		}
		if c.Send(&zds.WorkloadResponse{Payload: &zds.WorkloadResponse_Ack{Ack: &zds.Ack{Error: text}}}) != nil {
			return
		}
	}
}

func (z *ztunnel) handle(ctx context.Context, r *zds.WorkloadRequest) error {
	switch p := r.Payload.(type) {
	case *zds.WorkloadRequest_Add:
		z.note("add " + p.Add.Uid + " " + p.Add.WorkloadInfo.ServiceAccount)
		if z.hang != nil {
			<-z.hang
		}
		z.mu.Lock()
		refuse := z.refuse
		z.mu.Unlock()
		if refuse != "" {
			return errors.New(refuse)
		}
		err := z.takeListeners(ctx, p.Add.Uid)
		z.mu.Lock()
		defer z.mu.Unlock()
		if z.named != nil {
			z.named[p.Add.Uid] = true
		}
		if err != nil {
			z.pending[p.Add.Uid] = true
		}
		return err
	case *zds.WorkloadRequest_Del:
		z.drop(p.Del.Uid)
		z.note("del " + p.Del.Uid)
	case *zds.WorkloadRequest_SnapshotSent:
		z.dropUnnamed()
		z.note("snapshot")
	}
	return nil
}

func (z *ztunnel) takeListeners(ctx context.Context, uid string) error {
	z.mu.Lock()
	held := z.pods[uid]
	z.mu.Unlock()
	req := &nodeapi.Request{Verb: nodeapi.VerbListeners, Pod: &nodeapi.Pod{UID: uid}}
	var offer []int
	for slot, ln := range held {
		raw, err := ln.SyscallConn()
		if err != nil {
			return err
		}
		// Not (*os.File).Fd: it would make the socket, which is shared, a blocking one.
		err = raw.Control(func(s uintptr) {
			fd, err := unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0)
			if err == nil {
				req.Slots, offer = append(req.Slots, slot), append(offer, fd)
			}
		})
		if err != nil {
			return err
		}
	}
	defer nodeapi.CloseFDs(offer)
	resp, fds, err := z.l.client.Do(ctx, req, offer...)
	if err != nil {
		return err
	}
	fresh := map[string]*net.TCPListener{}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), resp.Slots[i])
		ln, err := net.FileListener(f)
		_ = f.Close()
		if err != nil {
			return err
		}
		fresh[resp.Slots[i]] = ln.(*net.TCPListener)
		z.wg.Go(func() { z.accept(ln, uid, resp.Slots[i]) })
	}
	for _, ln := range held {
		_ = ln.Close()
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	z.pods[uid] = fresh
	if z.dead {
		z.closeLocked()
	}
	return nil
}

// hanging has Adds wait until z is killed.
func hanging(z *ztunnel) { z.hang = make(chan struct{}) }

func refusing(text string) func(*ztunnel) { return func(z *ztunnel) { z.refuse = text } }

func (z *ztunnel) setRefuse(text string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.refuse = text
}

func (z *ztunnel) accept(ln net.Listener, uid, slot string) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		fmt.Fprintf(c, "%s %s %s\n", z.name, slot, c.LocalAddr())
		z.mu.Lock()
		z.conns[uid] = append(z.conns[uid], c)
		z.mu.Unlock()
	}
}

// dropUnnamed stops what the snapshot does not have.
func (z *ztunnel) dropUnnamed() {
	z.mu.Lock()
	var gone []string
	for uid := range z.pods {
		if !z.named[uid] {
			gone = append(gone, uid)
		}
	}
	z.named = nil
	z.mu.Unlock()
	for _, uid := range gone {
		z.drop(uid)
	}
}

// retry tries pods again that could not be served; the real one does so every 5 s.
func (z *ztunnel) retry(ctx context.Context) {
	z.mu.Lock()
	pending := slices.Collect(maps.Keys(z.pending))
	z.mu.Unlock()
	for _, uid := range pending {
		if z.takeListeners(ctx, uid) == nil {
			z.mu.Lock()
			delete(z.pending, uid)
			z.mu.Unlock()
		}
	}
}

func (z *ztunnel) drop(uid string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	delete(z.pending, uid)
	for _, ln := range z.pods[uid] {
		_ = ln.Close()
	}
	delete(z.pods, uid)
	z.hangUpLocked(uid) // They would keep the pod's namespace alive.
}

func (z *ztunnel) hangUpLocked(uid string) {
	for _, c := range z.conns[uid] {
		_ = c.(*net.TCPConn).SetLinger(0) // A FIN that a vanished pod cannot send keeps its namespace for minutes.
		_ = c.Close()
	}
	delete(z.conns, uid)
}

func (z *ztunnel) note(event string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.events = append(z.events, event)
}

// seen counts an event.
func (z *ztunnel) seen(event string) (n int) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, e := range z.events {
		if e == event {
			n++
		}
	}
	return n
}

func (z *ztunnel) waitEvent(event string) {
	z.l.t.Helper()
	z.l.eventually(func() error {
		if z.seen(event) == 0 {
			return fmt.Errorf("ztunnel %s has not seen %q", z.name, event)
		}
		return nil
	})
}

// kill is the process's end: everything it has open closes.
func (z *ztunnel) kill() {
	z.stopZ()
	z.mu.Lock()
	z.dead = true
	z.closeLocked()
	z.mu.Unlock()
	if z.hang != nil {
		select {
		case <-z.hang:
		default:
			close(z.hang)
		}
	}
	z.wg.Wait()
}

func (z *ztunnel) closeLocked() {
	for _, set := range z.pods {
		for _, ln := range set {
			_ = ln.Close()
		}
	}
	for uid := range z.conns {
		z.hangUpLocked(uid)
	}
	z.pods = map[string]map[string]*net.TCPListener{}
}
