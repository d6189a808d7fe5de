// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/inpod"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

const (
	// maxQueries and maxConns bound what one pod may have us do at once.
	maxQueries = 256
	maxConns   = 64
	// maxQueryBytes is for UDP; one with a signature is well below.
	maxQueryBytes = 4096
	// idleTimeout ends TCP connections: ambient section 8.7.
	idleTimeout = 5 * time.Second
	// upstreamTimeout is below the 5 s after which resolvers give a server up, so that they get an answer.
	upstreamTimeout = 4 * time.Second
)

// Sockets are those of one pod; *[inpod.Pod] in life.
type Sockets interface {
	// DialUDP returns a socket that hears only to.
	DialUDP(ctx context.Context, to netip.AddrPort) (*net.UDPConn, error)
	// SendUDP sends a datagram from an address, whoever owns it, to one of the pod's own.
	SendUDP(ctx context.Context, from, to netip.AddrPort, data []byte) error
}

// Client is the pod that asks; [proxy.Client] in life.
type Client interface {
	Workload(ctx context.Context) (*discovery.Workload, error)
	// Dial connects as the pod's own connections are carried.
	Dial(ctx context.Context, from, to netip.AddrPort) (net.Conn, error)
	// Reserve takes descriptors of the pod's share until release is called.
	Reserve(descriptors int) (release func(), err error)
	// Shed resets what waits at ln if err, of an accept, is for want of descriptors, and tells how many that were.
	Shed(ln *net.TCPListener, err error) (reset int)
}

// Config is what all pods' servers share. All fields must be set but Redirected, which is nil for queries that come with
// where they were to go.
type Config struct {
	Resolver   *Resolver
	Metrics    *telemetry.Metrics
	Log        *slog.Logger
	Redirected *Redirected
}

// Server answers the queries of one pod.
type Server struct {
	Config
	sockets Sockets
	client  Client
	queries chan struct{} // room for each query underway
	conns   chan struct{} // and for each TCP connection

	ctx     context.Context
	cancel  context.CancelFunc
	loops   sync.WaitGroup // only they add to serving
	serving sync.WaitGroup
}

// NewServer returns the server of a pod. [Server.Listen] has it answer; end it with Drain or Stop.
func NewServer(c Config, sockets Sockets, client Client) *Server {
	ctx, cancel := context.WithCancel(context.Background())
	return &Server{
		Config: c, sockets: sockets, client: client,
		queries: make(chan struct{}, maxQueries), conns: make(chan struct{}, maxConns),
		ctx: ctx, cancel: cancel,
	}
}

// Listen answers what arrives on the sockets until they are closed, which is the caller's to do.
func (s *Server) Listen(udp []*net.UDPConn, tcp []*net.TCPListener) {
	for _, c := range udp {
		s.loops.Go(func() { s.readLoop(c) })
	}
	for _, ln := range tcp {
		s.loops.Go(func() { s.acceptLoop(ln) })
	}
}

// Drain returns when the sockets are closed and all is answered, or ctx ends; then nothing is answered any more.
func (s *Server) Drain(ctx context.Context) {
	stop := context.AfterFunc(ctx, s.cancel)
	defer stop()
	s.loops.Wait()
	s.serving.Wait()
	s.Stop()
}

// Stop cuts everything. The sockets must be closed already.
func (s *Server) Stop() {
	s.cancel()
	s.loops.Wait()
	s.serving.Wait()
}

// again reports whether a loop is to go on after an error, which it does after a pause. It logs one error a second.
func (s *Server) again(what string, err error, logged *time.Time) bool {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) || s.ctx.Err() != nil {
		return false
	}
	if now := time.Now(); now.Sub(*logged) >= time.Second {
		s.Log.Error("cannot take queries", "socket", what, "error", err)
		*logged = now
	}
	select {
	case <-time.After(50 * time.Millisecond):
		return true
	case <-s.ctx.Done():
		return false
	}
}

func (s *Server) readLoop(c *net.UDPConn) {
	buf, control := make([]byte, maxQueryBytes), make([]byte, inpod.DestinationSpace)
	var logged time.Time
	for {
		n, cn, _, from, err := c.ReadMsgUDPAddrPort(buf, control) // what is longer is cut, and malformed
		if err != nil {
			if s.again(c.LocalAddr().String(), err, &logged) {
				continue
			}
			return
		}
		to, err := s.destination(c, control[:cn])
		if err != nil {
			s.Metrics.DNSRefused("malformed")
			continue
		}
		q := &query{raw: append([]byte(nil), buf[:n]...), from: unmap(from), to: to, protocol: "udp"}
		if err := q.parse(); err != nil {
			s.Metrics.DNSRefused("malformed")
			continue
		}
		select {
		case s.queries <- struct{}{}:
			s.serving.Go(func() {
				defer func() { <-s.queries }()
				s.say(c, q, s.answer(s.ctx, q))
			})
		default:
			s.Metrics.DNSRefused("busy")
			s.say(c, q, q.fail())
		}
	}
}

// destination is where a datagram that came in on c was to go, as far as that is known.
func (s *Server) destination(c *net.UDPConn, control []byte) (netip.AddrPort, error) {
	if s.Redirected == nil {
		return inpod.Destination(control)
	}
	return c.LocalAddr().(*net.UDPAddr).AddrPort(), nil
}

// say sends an answer from the address that was asked.
func (s *Server) say(c *net.UDPConn, q *query, reply []byte) {
	if err := s.answerTo(c, q, reply); err != nil && s.ctx.Err() == nil {
		s.Metrics.DNSRefused("unsent") // logged at debug only: a pod can bring this about as often as it likes
		s.Log.Debug("answer not sent", "from", q.to.String(), "to", q.from.String(), "error", err)
	}
}

func (s *Server) acceptLoop(ln *net.TCPListener) {
	var logged time.Time
	for {
		conn, err := ln.AcceptTCP()
		if err == nil {
			s.accepted(conn)
			continue
		}
		for range s.client.Shed(ln, err) {
			s.Metrics.DNSRefused("limit")
		}
		if !s.again(ln.Addr().String(), err, &logged) {
			return
		}
	}
}

// accepted has conn served if there is room for it.
func (s *Server) accepted(conn *net.TCPConn) {
	release, err := s.client.Reserve(1)
	if err != nil {
		s.Metrics.DNSRefused("limit")
		_ = conn.Close()
		return
	}
	select {
	case s.conns <- struct{}{}:
		s.serving.Go(func() {
			defer func() { <-s.conns }()
			defer release()
			s.serveConn(conn)
		})
	default:
		s.Metrics.DNSRefused("busy")
		_ = conn.Close()
		release()
	}
}

// serveConn answers one query after the other.
func (s *Server) serveConn(conn *net.TCPConn) {
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(s.ctx, func() { _ = conn.Close() })()
	from, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
	to, _ := netip.ParseAddrPort(conn.LocalAddr().String())
	for {
		_ = conn.SetDeadline(time.Now().Add(idleTimeout))
		raw, err := readMessage(conn)
		if err != nil {
			return
		}
		q := &query{raw: raw, from: unmap(from), to: unmap(to), protocol: "tcp"}
		if err := q.parse(); err != nil {
			s.Metrics.DNSRefused("malformed")
			return
		}
		reply := s.answer(s.ctx, q)
		_ = conn.SetDeadline(time.Now().Add(idleTimeout))
		if err := writeMessage(conn, reply); err != nil {
			return
		}
	}
}

// readMessage reads one message in the framing of TCP: RFC 1035, section 4.2.2.
func readMessage(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(r, msg)
	return msg, err
}

func writeMessage(w io.Writer, msg []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
	return err
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
