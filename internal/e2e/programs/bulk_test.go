// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	bulkPort uint16 = 7300 + iota
	slowPort
)

const (
	bulkBytes = 1 << 30
	// bulkTimeout is for a busy machine and the race detector.
	bulkTimeout = 5 * time.Minute
	// stalledBytes is what a blocked sender would like to send; boundKiB is what a ztunnel may grow by meanwhile. The
	// windows of both TCP connections and of the stream between are all that may be held.
	stalledBytes = 128 << 20
	boundKiB     = 48 << 10
	// stillFor is how long no byte must move for the sender to count as blocked.
	stillFor = 2 * time.Second
)

// pattern yields bytes that are different for each seed and everywhere in the stream.
type pattern struct {
	random *rand.ChaCha8
	left   int64
}

func newPattern(seed byte, size int64) *pattern {
	return &pattern{rand.NewChaCha8([32]byte{seed}), size}
}

func (p *pattern) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), p.left))
	p.left -= int64(n)
	return p.random.Read(b[:n])
}

// sum is what was sent or received.
type sum struct {
	bytes int64
	hash  [sha256.Size]byte
}

// TestGigabyteEachWay sends a gibibyte each way at once, and compares checksums.
func TestGigabyteEachWay(t *testing.T) {
	p := enter(t)
	p.overBoth(bulkPort, 1, func(t *testing.T, to netip.AddrPort) {
		client, server := p.meet(t, to)
		for _, c := range []*net.TCPConn{client, server} {
			_ = c.SetDeadline(time.Now().Add(bulkTimeout))
		}
		type end struct {
			what string
			sum
			err error
		}
		ends := make(chan end, 4)
		for name, c := range map[string]*net.TCPConn{"client": client, "server": server} {
			go func() {
				s, err := sendPattern(c, newPattern(name[0], bulkBytes))
				ends <- end{"sent by " + name, s, err}
			}()
			go func() {
				h := sha256.New()
				n, err := io.CopyBuffer(h, struct{ io.Reader }{c}, make([]byte, 1<<20))
				ends <- end{"received by " + name, sumOf(n, h), err}
			}()
		}
		got := map[string]sum{}
		for range 4 {
			e := <-ends
			if e.err != nil {
				t.Fatalf("%s: %d bytes: %v", e.what, e.bytes, e.err)
			}
			got[e.what] = e.sum
		}
		for from, by := range map[string]string{"client": "server", "server": "client"} {
			if sent, received := got["sent by "+from], got["received by "+by]; sent != received || sent.bytes != bulkBytes {
				t.Errorf("%s sent %d bytes, %x; %s received %d, %x", from, sent.bytes, sent.hash, by, received.bytes, received.hash)
			}
		}
		_, _ = client.Close(), server.Close()
	})
}

func sumOf(n int64, h hash.Hash) sum { return sum{n, [sha256.Size]byte(h.Sum(nil))} }

func sendPattern(c *net.TCPConn, p *pattern) (sum, error) {
	h := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{c}, io.TeeReader(p, h), make([]byte, 1<<20))
	return sumOf(n, h), errors.Join(err, c.CloseWrite())
}

// TestSlowReader has one side not read until the other is blocked, in both directions: neither ztunnel holds more than
// the windows allow, and in the end every byte comes.
func TestSlowReader(t *testing.T) {
	p := enter(t)
	p.overBoth(slowPort, 2, func(t *testing.T, to netip.AddrPort) {
		for _, who := range []string{"client", "server"} {
			t.Run(who+" reads slowly", func(t *testing.T) {
				reader, sender := p.meet(t, to)
				if who == "server" {
					reader, sender = sender, reader
				}
				p.slowReader(t, reader, sender)
			})
		}
	})
}

func (p *place) slowReader(t *testing.T, reader, sender *net.TCPConn) {
	before := p.resident(t)
	source := newPattern('s', stalledBytes)
	counted := &counter{Reader: source, moved: make(chan int64, 1)}
	done := make(chan error, 1)
	want := sha256.New()
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{sender}, io.TeeReader(counted, want), make([]byte, 64<<10))
		done <- errors.Join(err, sender.CloseWrite())
	}()
	sent := counted.blocked(t, done)
	for name, now := range p.resident(t) {
		if grown := now - before[name]; grown > boundKiB {
			t.Errorf("%s grew by %d KiB while a sender was blocked after %d KiB; the bound is %d KiB", name, grown, sent>>10, boundKiB)
		}
	}
	got := sha256.New()
	n, err := io.CopyBuffer(got, struct{ io.Reader }{reader}, make([]byte, 1<<20))
	if err := errors.Join(err, <-done); err != nil {
		t.Fatalf("after %d bytes: %v", n, err)
	}
	if s, r := sumOf(stalledBytes, want), sumOf(n, got); s != r {
		t.Errorf("sent %d bytes, %x; received %d, %x", s.bytes, s.hash, r.bytes, r.hash)
	}
	_, _ = reader.Close(), sender.Close()
}

// counter tells after each read how much has been read.
type counter struct {
	io.Reader
	n     int64
	moved chan int64 // holds the newest
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.n += int64(n)
	select {
	case <-c.moved:
	default:
	}
	c.moved <- c.n
	return n, err
}

// blocked waits until the sender takes nothing more, and returns how much it took.
func (c *counter) blocked(t *testing.T, done <-chan error) (sent int64) {
	t.Helper()
	for {
		select {
		case sent = <-c.moved:
		case err := <-done:
			t.Fatalf("%d bytes went though nobody reads; want the sender to be blocked: %v", stalledBytes, err)
		case <-time.After(stillFor): // that nothing happens is what is waited for
			return sent
		}
	}
}

// resident is the memory of both ztunnels in KiB; proc(5), VmRSS.
func (p *place) resident(t *testing.T) map[string]int {
	t.Helper()
	all := map[string]int{}
	for _, n := range p.Nodes {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.Ztunnel.PID))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(data), "VmRSS:")
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			t.Fatalf("no VmRSS of %s", n.Ztunnel.Name)
		}
		if all[n.Ztunnel.Name], err = strconv.Atoi(fields[0]); err != nil {
			t.Fatal(err)
		}
	}
	return all
}
