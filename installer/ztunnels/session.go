// SPDX-License-Identifier: Apache-2.0

package ztunnels

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/zds"
)

var (
	errDropped = errors.New("ztunnel went away")
	errUnasked = errors.New("ztunnel spoke without being asked")
	errNoAck   = errors.New("ztunnel's answer is no ack")
)

// update is one change that a ztunnel is to be told of. The pod itself is looked up when its turn comes, so that a pod
// that is gone by then is not announced and its descriptor is never used after being closed.
type update struct {
	uid  string
	del  bool
	done chan error // gets exactly one value, never blocks
}

func addUpdate(uid string) *update { return &update{uid: uid, done: make(chan error, 1)} }
func delUpdate(uid string) *update { return &update{uid: uid, del: true, done: make(chan error, 1)} }

// wait gives up with ctx. z is then left to its own deadline: the answer may still come and must be read in its place.
func (u *update) wait(ctx context.Context, z *session) error {
	select {
	case err := <-u.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("ztunnel %d: no answer: %w", z.id, ctx.Err())
	}
}

// session is one connected ztunnel.
//
//	hello ──► join ──► snapshot: Add, ack, Add, ack, ... SnapshotSent, ack ──► queue: one update, its ack, the next
//
// One goroutine (run) asks, another (read) receives; read also is what notices EOF and unasked speech at once.
type session struct {
	id   uint64
	conn *zds.Conn
	pid  int
	log  *slog.Logger

	asked atomic.Bool // a request is out and its answer is not in
	acks  chan *zds.Ack
	wake  chan struct{} // queue has something

	dropOnce sync.Once
	dropped  chan struct{}
	reason   error // set before dropped is closed

	// Guarded by Server.mu.
	queue []*update
	gone  bool
	due   map[string]int // by uid: announcements to come, that under way included
	acked map[string]Pod // by uid: what it serves
}

func (z *session) enqueueLocked(u *update) *update {
	if z.gone {
		u.done <- errDropped
		return u
	}
	z.queue = append(z.queue, u)
	if !u.del {
		z.due[u.uid]++
	}
	select {
	case z.wake <- struct{}{}:
	default:
	}
	return u
}

func (z *session) drop(reason error) {
	z.dropOnce.Do(func() {
		z.reason = reason
		close(z.dropped)
		_ = z.conn.Close()
	})
}

// serveConn is a ztunnel's whole life with us.
func (s *Server) serveConn(c *zds.Conn) {
	defer s.wg.Done()
	defer s.forget(c)
	s.mu.Lock()
	s.lastID++
	id := s.lastID
	s.mu.Unlock()
	log := s.log.With("ztunnel", id)
	if err := s.readHello(c); err != nil {
		log.Warn("ztunnel dropped", "err", err)
		return
	}
	z := &session{
		id: id, conn: c, pid: c.PeerPID(), log: log,
		acks: make(chan *zds.Ack, 1), wake: make(chan struct{}, 1), dropped: make(chan struct{}),
		due: map[string]int{}, acked: map[string]Pod{},
	}
	uids, ok := s.join(z)
	if !ok {
		return
	}
	log.Info("ztunnel connected", "pods", len(uids))
	s.cfg.Changed()
	s.wg.Add(1)
	go s.read(z)
	err := s.run(z, uids)
	z.drop(err)
	s.leave(z)
	log.Info("ztunnel disconnected", "reason", z.reason)
	s.cfg.Changed()
}

func (s *Server) forget(c *zds.Conn) {
	_ = c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// readHello does not look at the version: there is one.
func (s *Server) readHello(c *zds.Conn) error {
	if err := c.SetDeadline(time.Now().Add(s.cfg.Timeout)); err != nil {
		return err
	}
	var hello zds.ZdsHello
	fds, err := c.Receive(&hello)
	zds.CloseFDs(fds)
	if err != nil {
		return fmt.Errorf("wait for hello: %w", err)
	}
	return c.SetDeadline(time.Time{})
}

func (s *Server) run(z *session, uids []string) error {
	for _, uid := range uids {
		if err := s.sendSnapshotPod(z, uid); err != nil {
			return fmt.Errorf("snapshot: %w", err)
		}
	}
	end := &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_SnapshotSent{SnapshotSent: &zds.SnapshotSent{}}}
	if err := s.ask(z, end); err != nil && !errors.Is(err, ErrRefused) {
		return fmt.Errorf("end snapshot: %w", err)
	}
	for {
		select {
		case <-z.dropped:
			return z.reason
		case <-z.wake:
		}
		if err := s.drainQueue(z); err != nil {
			return err
		}
	}
}

// sendSnapshotPod logs a refusal only: ztunnel retries such a pod by itself and is not ready until it serves it.
func (s *Server) sendSnapshotPod(z *session, uid string) error {
	err := s.announce(z, uid)
	if errors.Is(err, ErrRefused) {
		z.log.Warn("pod refused by ztunnel", "uid", uid, "err", err)
		return nil
	}
	return err
}

// drainQueue returns an error when the connection can no longer be used; a refusal is for the update's owner alone.
func (s *Server) drainQueue(z *session) error {
	for {
		u := s.next(z)
		if u == nil {
			return nil
		}
		err := s.tell(z, u)
		if err != nil && !errors.Is(err, ErrRefused) {
			u.done <- errDropped
			return err
		}
		u.done <- err
	}
}

func (s *Server) next(z *session) *update {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(z.queue) == 0 {
		return nil
	}
	u := z.queue[0]
	z.queue = z.queue[1:]
	return u
}

func (s *Server) tell(z *session, u *update) error {
	if !u.del {
		return s.announce(z, u.uid)
	}
	s.mu.Lock()
	delete(z.acked, u.uid)
	s.mu.Unlock()
	return s.ask(z, &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Del{Del: &zds.DelWorkload{Uid: u.uid}}})
}

// announce sends an Add with a descriptor of its own, taken while the pod is known to be there.
func (s *Server) announce(z *session, uid string) error {
	s.mu.Lock()
	p, ok := s.pods[uid]
	delete(z.acked, uid)
	if !ok {
		s.announcedLocked(z, uid)
		s.mu.Unlock()
		return nil
	}
	fd, err := unix.FcntlInt(uintptr(p.Netns.FD()), unix.F_DUPFD_CLOEXEC, 0)
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("duplicate netns of pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	defer func() { _ = unix.Close(fd) }()
	err = s.ask(z, &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Add{Add: &zds.AddWorkload{
		Uid: uid,
		WorkloadInfo: &zds.WorkloadInfo{
			Name: p.Name, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount,
		},
	}}}, fd)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.announcedLocked(z, uid)
	if err == nil {
		z.acked[uid] = p
	}
	return err
}

func (s *Server) announcedLocked(z *session, uid string) {
	if z.due[uid]--; z.due[uid] == 0 {
		delete(z.due, uid)
	}
}

// ask sends one request and waits for its ack. The deadline covers both; when it passes read fails and drops z.
func (s *Server) ask(z *session, m *zds.WorkloadRequest, fds ...int) error {
	z.asked.Store(true)
	if err := z.conn.SetDeadline(time.Now().Add(s.cfg.Timeout)); err != nil {
		return err
	}
	if err := z.conn.Send(m, fds...); err != nil {
		return err
	}
	select {
	case <-z.dropped:
		return z.reason
	case ack := <-z.acks:
		if text := ack.GetError(); text != "" {
			return fmt.Errorf("%w: %s", ErrRefused, text)
		}
		return nil
	}
}

// read receives acks until the connection ends. It alone drops a ztunnel that is late, gone, or speaks unasked.
func (s *Server) read(z *session) {
	defer s.wg.Done()
	for {
		var r zds.WorkloadResponse
		fds, err := z.conn.Receive(&r)
		zds.CloseFDs(fds)
		switch {
		case errors.Is(err, io.EOF):
			err = errors.New("ztunnel closed the connection")
		case err == nil && !z.asked.CompareAndSwap(true, false):
			err = errUnasked
		case err == nil && r.GetAck() == nil:
			err = errNoAck
		}
		if err != nil {
			z.drop(err)
			return
		}
		// Clear the deadline before the ack is handed on: the next request sets its own.
		if err := z.conn.SetDeadline(time.Time{}); err != nil {
			z.drop(err)
			return
		}
		z.acks <- r.GetAck()
	}
}
