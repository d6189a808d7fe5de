// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sluice-mesh/sluice/internal/zds"
)

// ErrProtocol reports an agent that breaks the protocol in a way that leaves unclear which pods are to be served.
var ErrProtocol = errors.New("zds protocol error")

const (
	redialMin = 10 * time.Millisecond
	// redialMax is well below ambient's 15 s: an agent that is back must not have to refuse new pods for so long.
	redialMax     = time.Second
	retryInterval = 5 * time.Second
)

// Client takes orders from the agent over ZDS and carries them out on a Manager.
type Client struct {
	Socket  string
	Manager *Manager
	Log     *slog.Logger
	// Ready is called with true when a snapshot has been carried out and no pod is pending, with false when that no
	// longer holds. It may be called twice with the same value.
	Ready func(bool)
	// RetryInterval is how often pending pods are tried again; 0 means 5 s.
	RetryInterval time.Duration
}

// Run connects, serves and reconnects until ctx ends, then returns nil. Pods keep being served while there is no
// connection and after Run. It returns an error wrapping [ErrProtocol] if the agent breaks the protocol.
//
// Call it only when xDS has delivered its first state: saying hello means being able to serve.
func (c *Client) Run(ctx context.Context) error {
	delay := redialMin
	for ctx.Err() == nil {
		conn, err := zds.Dial(ctx, c.Socket)
		if err == nil {
			c.Log.Info("connected to the agent", "socket", c.Socket)
			var welcome bool
			welcome, err = c.session(ctx, conn)
			c.Ready(false)
			if errors.Is(err, ErrProtocol) {
				return err
			}
			if welcome {
				delay = redialMin
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		level := slog.LevelDebug
		if delay == redialMin {
			level = slog.LevelWarn // once for each time that it goes away
		}
		c.Log.Log(ctx, level, "no connection to the agent; pods are served as before", "error", err)
		select {
		case <-time.After(delay):
		case <-ctx.Done():
		}
		delay = min(2*delay, redialMax)
	}
	return nil
}

// session is one connection to the agent. Its snapshot starts from nothing; running pods are kept until it is complete.
type session struct {
	client *Client
	conn   *zds.Conn
	// mentioned are the pods of the snapshot; nil once the snapshot is complete.
	mentioned map[string]bool
}

// session answers requests until the connection or ctx ends. welcome says that the agent sent at least one.
func (c *Client) session(ctx context.Context, conn *zds.Conn) (welcome bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	retried := make(chan struct{})
	s := &session{client: c, conn: conn, mentioned: map[string]bool{}}
	synced := make(chan struct{})
	go c.retryLoop(ctx, synced, retried)
	defer func() {
		cancel()
		_ = conn.Close()
		<-retried
	}()

	if err := s.send(&zds.ZdsHello{Version: zds.Version_V1}); err != nil {
		return false, err
	}
	for {
		snapshot := s.mentioned != nil
		if err := s.step(ctx); err != nil {
			return welcome, err
		}
		welcome = true
		if snapshot && s.mentioned == nil {
			close(synced)
		}
		if s.mentioned == nil {
			c.Ready(c.Manager.Pending() == 0)
		}
	}
}

// retryLoop keeps trying pending pods, and reports readiness when that changed something after the snapshot.
func (c *Client) retryLoop(ctx context.Context, synced <-chan struct{}, done chan<- struct{}) {
	defer close(done)
	interval := c.RetryInterval
	if interval == 0 {
		interval = retryInterval
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if c.Manager.Pending() == 0 {
			continue
		}
		c.Manager.Retry(ctx)
		select {
		case <-synced:
			if ctx.Err() == nil {
				c.Ready(c.Manager.Pending() == 0)
			}
		default:
		}
	}
}

// step reads one request and answers it, exactly once. An error ends the connection.
func (s *session) step(ctx context.Context) error {
	var req zds.WorkloadRequest
	fds, err := s.conn.Receive(&req)
	if errors.Is(err, io.EOF) || ctx.Err() != nil {
		return errors.New("the agent closed the connection")
	}
	if err != nil {
		// Best effort: what was asked is unknown, so the connection cannot go on.
		_ = s.ack(err)
		return err
	}
	err = s.handle(ctx, &req, fds)
	if err != nil {
		s.client.Log.Warn("request of the agent was refused", "error", err)
	}
	if sendErr := s.ack(err); sendErr != nil {
		return sendErr
	}
	if errors.Is(err, ErrProtocol) {
		return err
	}
	return nil
}

func (s *session) ack(err error) error {
	ack := &zds.Ack{}
	if err != nil {
		ack.Error = truncate(err.Error(), zds.MaxMessageBytes/2)
	}
	return s.send(&zds.WorkloadResponse{Payload: &zds.WorkloadResponse_Ack{Ack: ack}})
}

func truncate(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit] + "..."
	}
	return strings.ToValidUTF8(s, "?") // else it is no protobuf string
}

// handle carries out one request. It takes ownership of fds.
func (s *session) handle(ctx context.Context, req *zds.WorkloadRequest, fds []int) error {
	add, isAdd := req.GetPayload().(*zds.WorkloadRequest_Add)
	if !isAdd && len(fds) != 0 {
		zds.CloseFDs(fds)
		return fmt.Errorf("%d file descriptors with a request that has none", len(fds))
	}
	switch p := req.GetPayload().(type) {
	case *zds.WorkloadRequest_Add:
		return s.add(ctx, add.Add, fds)
	case *zds.WorkloadRequest_Keep:
		return s.keep(p.Keep.GetUid())
	case *zds.WorkloadRequest_Del:
		return s.del(p.Del.GetUid())
	case *zds.WorkloadRequest_SnapshotSent:
		return s.snapshotSent()
	}
	return errors.New("unknown request")
}

func (s *session) add(ctx context.Context, add *zds.AddWorkload, fds []int) error {
	info := add.GetWorkloadInfo()
	if info == nil {
		zds.CloseFDs(fds)
		return fmt.Errorf("%w: add %q without workload info", ErrProtocol, add.GetUid())
	}
	if len(fds) != 1 {
		zds.CloseFDs(fds)
		if len(fds) == 0 {
			return fmt.Errorf("add %q: no control message: the network namespace's file descriptor is missing", add.GetUid())
		}
		return fmt.Errorf("add %q: %d file descriptors, want 1", add.GetUid(), len(fds))
	}
	if s.mentioned != nil {
		s.mentioned[add.GetUid()] = true
	}
	return s.client.Manager.Add(ctx, Info{
		UID: add.GetUid(), Name: info.GetName(), Namespace: info.GetNamespace(), ServiceAccount: info.GetServiceAccount(),
	}, fds[0])
}

func (s *session) keep(uid string) error {
	if s.mentioned == nil {
		return fmt.Errorf("%w: keep %q after the snapshot", ErrProtocol, uid)
	}
	s.mentioned[uid] = true
	return nil
}

func (s *session) del(uid string) error {
	if s.mentioned != nil {
		delete(s.mentioned, uid) // stopped with all others that the snapshot lacks
		return nil
	}
	s.client.Manager.Del(uid)
	return nil
}

func (s *session) snapshotSent() error {
	if s.mentioned == nil {
		return fmt.Errorf("%w: a second snapshot on one connection", ErrProtocol)
	}
	s.client.Manager.Retain(func(uid string) bool { return s.mentioned[uid] })
	s.mentioned = nil
	return nil
}

func (s *session) send(m proto.Message) error {
	return s.conn.Send(m)
}
