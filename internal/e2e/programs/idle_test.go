// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/lab"
)

// idleRole makes the test's own binary the client or the server of TestIdleConnections.
const idleRole = "SLUICE_PROGRAMS_IDLE"

const (
	idlePort = 7100
	// idleFor is how long nobody says anything.
	idleFor = 60 * time.Second
	// idleWanted is how many connections are open at once, half of them over each family, where the limit of open files
	// allows it; idleFloor is what the test is not worth running below.
	idleWanted, idleFloor = 10_000, 2000
	// spareFiles are those that a process has open beside the connections.
	spareFiles = 2000
	// idleDialers is how many connections are opened at once.
	idleDialers = 16
)

// idleCount is derived from the limit of open files. One process holds one end of each connection: client, server, and
// the ztunnel of either node have one descriptor per connection each.
func idleCount(t *testing.T) int {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	count := int(min(idleWanted+spareFiles, limit.Max)) - spareFiles
	if count < idleFloor {
		t.Fatalf("at most %d files may be open (ulimit -Hn), which leaves %d connections; want %d at least", limit.Max, count, idleFloor)
	}
	t.Logf("%d connections at once (limit of open files: %d)", count, limit.Max)
	return count
}

// TestIdleConnections opens many connections, leaves them alone for a minute, and then has each echo again.
func TestIdleConnections(t *testing.T) {
	t.Parallel()
	p := enter(t)
	count := idleCount(t)
	p.idle(p.server, "server")
	targets := []string{at(p.server, 4, idlePort).String(), at(p.server, 6, idlePort).String()}
	client := p.idle(p.client, "client", append([]string{strconv.Itoa(count)}, targets...)...)
	client.want(t, "open")
	<-time.After(idleFor) // what is tested: that nothing happens in this time
	client.tell(t, "again")
	client.want(t, "again")
	client.tell(t, "close")
	client.want(t, "closed")
	for _, family := range families {
		p.wantMTLS(t, at(p.server, family, idlePort), count/len(families))
	}
}

// idleProcess is the test's own binary in a pod. It says a word on stdout when it has done what it was told.
type idleProcess struct {
	in  io.Writer
	out *bufio.Reader
}

func (p *place) idle(pod *lab.Pod, role string, args ...string) *idleProcess {
	p.t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), idleRole+"="+role)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := lab.In(pod.NS, cmd.Start); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		_ = in.Close() // ends it
		if err := cmd.Wait(); err != nil {
			p.t.Errorf("idle %s: %v", role, err)
		}
	})
	process := &idleProcess{in, bufio.NewReader(out)}
	process.want(p.t, "ready")
	return process
}

func (i *idleProcess) tell(t *testing.T, word string) {
	t.Helper()
	if _, err := fmt.Fprintln(i.in, word); err != nil {
		t.Fatal(err)
	}
}

func (i *idleProcess) want(t *testing.T, word string) {
	t.Helper()
	if got, err := i.out.ReadString('\n'); err != nil || strings.TrimSpace(got) != word {
		t.Fatalf("idle: got %q, %v, want %q", got, err, word)
	}
}

// runIdle is the program in the pods; it ends with its input.
func runIdle(role string, args []string, in io.Reader, out io.Writer) int {
	var err error
	if role == "server" {
		err = idleServer(in, out)
	} else {
		err = idleClient(args, bufio.NewScanner(in), out)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "idle %s: %v\n", role, err)
		return 1
	}
	return 0
}

func idleServer(in io.Reader, out io.Writer) error {
	l, err := net.Listen("tcp", fmt.Sprintf("[::]:%d", idlePort))
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	go echoAll(l)
	fmt.Fprintln(out, "ready")
	_, err = io.Copy(io.Discard, in)
	return err
}

// idleClient opens args[0] connections, to the addresses that follow in turn.
func idleClient(args []string, in *bufio.Scanner, out io.Writer) error {
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "ready")
	conns := make([]net.Conn, count)
	err = each(conns, func(i int) (err error) {
		to := netip.MustParseAddrPort(args[1+i%(len(args)-1)])
		if conns[i], err = net.DialTimeout("tcp", to.String(), commandTimeout); err != nil {
			return err
		}
		return echoWord(conns[i], i)
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "open")
	for in.Scan() {
		switch word := in.Text(); word {
		case "again":
			err = each(conns, func(i int) error { return echoWord(conns[i], i) })
			fmt.Fprintln(out, word)
		case "close":
			err = each(conns, func(i int) error { return conns[i].Close() })
			fmt.Fprintln(out, "closed")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// each calls f for every connection, a few at a time.
func each(conns []net.Conn, f func(i int) error) error {
	errs := make([]error, idleDialers)
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() {
			for i := w; i < len(conns) && errs[w] == nil; i += idleDialers {
				if errs[w] = f(i); errs[w] != nil {
					errs[w] = fmt.Errorf("connection %d: %w", i, errs[w])
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// echoWord sends a line that is the connection's own and wants it back.
func echoWord(c net.Conn, i int) error {
	_ = c.SetDeadline(time.Now().Add(effect))
	word := fmt.Appendf(nil, "connection %08d\n", i)
	if _, err := c.Write(word); err != nil {
		return err
	}
	got := make([]byte, len(word))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !slices.Equal(got, word) {
		return fmt.Errorf("got %q, want %q", got, word)
	}
	return nil
}

// echoAll echoes on every connection until the listener is closed. It keeps the kernel from splicing, for which each
// connection would need a pipe, and with it two more descriptors.
func echoAll(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = c.Close() }()
			buffer := make([]byte, 4<<10)
			if _, err := io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, buffer); err == nil {
				_ = c.(*net.TCPConn).CloseWrite()
			}
		}()
	}
}
