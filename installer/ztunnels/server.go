// SPDX-License-Identifier: Apache-2.0

// Package ztunnels is the agent's end of ZDS: it tells every ztunnel of the node which pods to serve.
package ztunnels

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/sluice-mesh/sluice/internal/netns"
	"github.com/sluice-mesh/sluice/internal/zds"
)

var (
	// ErrNone reports that no ztunnel is connected. The pod may be added again later.
	ErrNone = errors.New("no ztunnel connected on this node")
	// ErrRefused reports that ztunnel answered, and answered no.
	ErrRefused = errors.New("ztunnel refused the pod")
)

// DefaultTimeout bounds each request, its answer included, and the wait for a hello.
const DefaultTimeout = 5 * time.Second

// Pod is what a ztunnel has to know of a pod.
type Pod struct {
	UID            string
	Namespace      string
	Name           string
	ServiceAccount string
	// Netns stays the caller's. It must be open until Remove has returned.
	Netns *netns.NS
}

// Config of a Server. Zero values are usable but for Path.
type Config struct {
	// Path of the socket; a stale one is replaced.
	Path string
	// Timeout of one request and its answer; zero means DefaultTimeout.
	Timeout time.Duration
	// Changed is called, outside any lock, after a ztunnel came or went. It must not block.
	Changed func()
	Logger  *slog.Logger
}

// Server accepts ztunnels and keeps them informed.
//
// Every ztunnel first gets a snapshot of all pods. After that the newest gets each new pod and all get each removal.
// Each has at most one request outstanding; one that is late, silent or talks unasked is dropped, because from then on
// its answers could not be told apart. All methods are safe for concurrent use.
type Server struct {
	cfg Config
	ln  *zds.Listener
	log *slog.Logger
	wg  sync.WaitGroup

	// mu guards the fields below and every session's queue. Nothing is sent while it is held.
	mu       sync.Mutex
	closed   bool
	pods     map[string]Pod
	conns    map[*zds.Conn]struct{} // all, also those that have not said hello
	sessions []*session             // oldest first
	lastID   uint64
	emptied  time.Time // since when sessions is empty
}

// Listen opens the socket. No ztunnel is accepted before Serve, so that the first snapshot can be complete.
func Listen(cfg Config) (*Server, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	ln, err := zds.Listen(cfg.Path, cfg.Logger)
	if err != nil {
		return nil, err
	}
	return &Server{cfg: cfg, ln: ln, log: cfg.Logger, pods: map[string]Pod{},
		conns: map[*zds.Conn]struct{}{}, emptied: time.Now()}, nil
}

// Serve accepts ztunnels until ctx ends, then hangs up on all of them and waits for their goroutines.
// What they serve they go on serving.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.hangUp)
	defer s.wg.Wait()
	defer stop()
	for {
		c, err := s.ln.Accept()
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			s.hangUp()
			return err
		}
		s.mu.Lock()
		s.conns[c] = struct{}{}
		s.mu.Unlock()
		s.wg.Add(1)
		go s.serveConn(c)
	}
}

// Close ends Serve and every connection.
func (s *Server) Close() { s.hangUp() }

func (s *Server) hangUp() {
	s.mu.Lock()
	s.closed = true
	defer s.mu.Unlock()
	_ = s.ln.Close()
	for _, z := range s.sessions {
		z.drop(net.ErrClosed)
	}
	for c := range s.conns {
		_ = c.Close()
	}
}

// Connected is how many ztunnels have said hello and are still there.
func (s *Server) Connected() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// PIDs are the process numbers of those that are connected, the newest last; 0 for one of a PID namespace that this process
// does not see.
func (s *Server) PIDs() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	pids := make([]int, len(s.sessions))
	for i, z := range s.sessions {
		pids[i] = z.pid
	}
	return pids
}

// Down is for how long no ztunnel has been connected; zero while one is.
func (s *Server) Down() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sessions) > 0 {
		return 0
	}
	return time.Since(s.emptied)
}

// Put records p for coming snapshots without asking anyone: for pods that a ztunnel of before a restart still serves.
func (s *Server) Put(p Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pods[p.UID] = p
}

// Add has the newest ztunnel serve p and returns when it does.
//
// If that ztunnel goes away the one before it is asked. On error no ztunnel is left with p. Errors: wrapping [ErrNone],
// [ErrRefused] with ztunnel's reason, or ctx's.
func (s *Server) Add(ctx context.Context, p Pod) error {
	if err := s.announceToNewest(ctx, p); err != nil {
		s.takeBack(p.UID)
		return fmt.Errorf("add pod to ztunnel: %w", err)
	}
	return nil
}

// Update is Add for a pod that is served already: on error the ztunnels keep what they have of it, and the next one that
// connects is told of p as it is now. The errors are Add's.
func (s *Server) Update(ctx context.Context, p Pod) error {
	if err := s.announceToNewest(ctx, p); err != nil {
		return fmt.Errorf("tell ztunnel of pod: %w", err)
	}
	return nil
}

func (s *Server) announceToNewest(ctx context.Context, p Pod) error {
	for {
		u, z := s.queueAdd(p)
		if u == nil {
			return ErrNone
		}
		if err := u.wait(ctx, z); !errors.Is(err, errDropped) || ctx.Err() != nil {
			return err
		}
	}
}

// queueAdd returns nil if nobody is connected.
func (s *Server) queueAdd(p Pod) (*update, *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pods[p.UID] = p
	if len(s.sessions) == 0 {
		return nil, nil
	}
	z := s.sessions[len(s.sessions)-1]
	return z.enqueueLocked(addUpdate(p.UID)), z
}

// Progress is how far the newest ztunnel is with a pod.
type Progress int

const (
	// Unserved: it has not been told of the pod as it is now, or refused it. Also when there is no ztunnel.
	Unserved Progress = iota
	// Underway: it is about to be told.
	Underway
	// Served: it has acked the pod as it is now.
	Served
	// Always is further than it can be: for a caller that wants it told again.
	Always
)

// Progress of p, compared in every field, with the newest ztunnel.
func (s *Server) Progress(p Pod) Progress {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sessions) == 0 {
		return Unserved
	}
	z := s.sessions[len(s.sessions)-1]
	switch acked, ok := z.acked[p.UID]; {
	case z.due[p.UID] > 0:
		return Underway
	case ok && acked == p:
		return Served
	}
	return Unserved
}

// Remove takes the pod from every ztunnel and waits until each has answered, gone away, or ctx ends.
// Removing an unknown pod, or removing with nobody connected, succeeds.
func (s *Server) Remove(ctx context.Context, uid string) error {
	var errs []error
	for z, u := range s.takeBack(uid) {
		if err := u.wait(ctx, z); err != nil && !errors.Is(err, errDropped) {
			errs = append(errs, fmt.Errorf("remove pod from ztunnel %d: %w", z.id, err))
		}
	}
	return errors.Join(errs...)
}

func (s *Server) takeBack(uid string) map[*session]*update {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pods, uid)
	sent := make(map[*session]*update, len(s.sessions))
	for _, z := range s.sessions {
		sent[z] = z.enqueueLocked(delUpdate(uid))
	}
	return sent
}

// join registers z as the newest and returns the uids its snapshot must have: whatever changes later is in z's queue.
func (s *Server) join(z *session) ([]string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, false
	}
	s.sessions = append(s.sessions, z)
	uids := s.uidsLocked()
	for _, uid := range uids {
		z.due[uid]++
	}
	return uids, true
}

func (s *Server) uidsLocked() []string { return slices.Sorted(maps.Keys(s.pods)) }

func (s *Server) leave(z *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.sessions, z); i >= 0 {
		s.sessions = slices.Delete(s.sessions, i, i+1)
		switch {
		case len(s.sessions) == 0:
			s.emptied = time.Now()
		case i == len(s.sessions):
			s.resumeLocked(s.sessions[i-1])
		}
	}
	for _, u := range z.queue {
		u.done <- errDropped
	}
	z.queue, z.gone = nil, true
}

// resumeLocked makes z, which is the newest again, catch up: what came while it was not, only the one that left was told.
func (s *Server) resumeLocked(z *session) {
	for _, uid := range s.uidsLocked() {
		if acked, ok := z.acked[uid]; !ok || acked != s.pods[uid] {
			z.enqueueLocked(addUpdate(uid))
		}
	}
}
