// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

const (
	truncatedBit = 1 << 1 // of a header's third byte
	responseBit  = 1 << 7
	rcodeBits    = 0xf // of its fourth
)

// fdsQuery is what a query to another server may hold, in file descriptors: a socket, and one more while an answer that was
// cut is asked for again over TCP.
const fdsQuery = 2

var errForeignAnswer = errors.New("the answer is to another question")

// answer returns what to tell the pod, always something.
func (s *Server) answer(ctx context.Context, q *query) []byte {
	client, err := s.client.Workload(ctx)
	labels := telemetry.DNSLabels{QueryType: q.typeName(), Protocol: q.protocol}
	if err != nil {
		s.Metrics.DNSRequest(labels)
		s.Metrics.DNSRefused("no workload")
		return q.fail()
	}
	labels.Service, labels.Revision = client.CanonicalName, client.CanonicalRevision
	s.Metrics.DNSRequest(labels)
	known, isKnown := answer{}, false
	if name := q.name(); name != "" {
		known, isKnown = s.Resolver.lookup(client, name)
	}
	if isKnown && (q.wants(dns.TypeA) || q.wants(dns.TypeAAAA)) {
		return s.local(q, known)
	}
	release, err := s.client.Reserve(fdsQuery)
	if err != nil {
		s.Metrics.DNSRefused("limit")
		return q.fail()
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, upstreamTimeout)
	defer cancel()
	start := time.Now()
	reply, err := s.forward(ctx, q)
	s.Metrics.DNSUpstream(labels, time.Since(start), err != nil)
	if err != nil {
		s.Log.Debug("query not answered by its server", "client", q.from.String(), "server", q.to.String(), "error", err)
		return q.fail()
	}
	if isKnown && reply[3]&rcodeBits == dns.RcodeNameError {
		// The name exists, whatever the server knows of it. A cache that was told otherwise would not ask for its
		// addresses any more: RFC 8020.
		reply[3] &^= rcodeBits
	}
	return reply
}

// local answers from what the mesh knows.
func (s *Server) local(q *query, known answer) []byte {
	reply, err := q.reply(known)
	if err != nil {
		s.Log.Warn("answer cannot be written", "name", q.name(), "error", err)
		return q.fail()
	}
	return reply
}

// forward asks the very server that the pod asked, if that is known, in the same words, and returns what it says.
func (s *Server) forward(ctx context.Context, q *query) ([]byte, error) {
	if s.Redirected != nil {
		return s.forwardRedirected(ctx, q)
	}
	return s.ask(ctx, q)
}

// ask asks the server at q.to.
func (s *Server) ask(ctx context.Context, q *query) ([]byte, error) {
	if q.protocol == "tcp" {
		return s.askTCP(ctx, q)
	}
	reply, err := s.askUDP(ctx, q)
	if err == nil && reply[2]&truncatedBit != 0 {
		// The server may allow less over UDP than the pod takes.
		if whole, err := s.askTCP(ctx, q); err == nil {
			return whole, nil
		}
	}
	return reply, err
}

// buffers are for answers over UDP. A pod that asks without end must not make as much garbage.
var buffers = sync.Pool{New: func() any { return new([1 << 16]byte) }}

// askUDP asks with an id and from a port that nobody can guess, and waits for the answer to this question.
func (s *Server) askUDP(ctx context.Context, q *query) ([]byte, error) {
	conn, err := s.sockets.DialUDP(ctx, q.to)
	if err != nil {
		return nil, err
	}
	defer bound(ctx, conn)()
	asked := withID(q.raw, randomID())
	if _, err := conn.Write(asked); err != nil {
		return nil, err
	}
	buf := buffers.Get().(*[1 << 16]byte)
	defer buffers.Put(buf)
	for {
		n, err := conn.Read(buf[:])
		if err != nil {
			return nil, err
		}
		if answers(asked, buf[:n]) {
			return withID(buf[:n], binary.BigEndian.Uint16(q.raw)), nil
		}
	}
}

func (s *Server) askTCP(ctx context.Context, q *query) ([]byte, error) {
	conn, err := s.client.Dial(ctx, q.from, q.to)
	if err != nil {
		return nil, err
	}
	defer bound(ctx, conn)()
	asked := withID(q.raw, randomID())
	if err := writeMessage(conn, asked); err != nil {
		return nil, fmt.Errorf("ask %s: %w", q.to, err)
	}
	reply, err := readMessage(conn)
	if err != nil {
		return nil, fmt.Errorf("answer of %s: %w", q.to, err)
	}
	if !answers(asked, reply) {
		return nil, errForeignAnswer
	}
	return withID(reply, binary.BigEndian.Uint16(q.raw)), nil
}

// bound ends conn's reads and writes with ctx. What it returns closes conn.
func bound(ctx context.Context, conn net.Conn) (end func()) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return func() { stop(); _ = conn.Close() }
}

func randomID() uint16 {
	var id [2]byte
	_, _ = rand.Read(id[:]) // never fails
	return binary.BigEndian.Uint16(id[:])
}

func withID(msg []byte, id uint16) []byte {
	return append(binary.BigEndian.AppendUint16(make([]byte, 0, len(msg)), id), msg[2:]...)
}

// answers reports whether reply is to the question asked: it repeats it, unless it is an error, which may not.
func answers(asked, reply []byte) bool {
	if len(reply) < headerSize || [2]byte(asked) != [2]byte(reply) || reply[2]&responseBit == 0 {
		return false
	}
	if binary.BigEndian.Uint16(reply[4:]) == 0 && (reply[3]&rcodeBits != 0 || binary.BigEndian.Uint16(asked[4:]) == 0) {
		return true
	}
	question := questionOf(asked)
	return len(reply) >= headerSize+len(question) && sameName(question, reply[headerSize:headerSize+len(question)])
}

// questionOf is the first question of a message that was parsed: a name, which nothing before it can abbreviate, a type
// and a class.
func questionOf(msg []byte) []byte {
	for at := headerSize; at < len(msg); at += int(msg[at]) + 1 {
		if msg[at] == 0 {
			return msg[headerSize:min(at+5, len(msg))]
		}
	}
	return msg[headerSize:]
}

// sameName compares without regard to case, which servers may change.
func sameName(a, b []byte) bool {
	for i := range a {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}
