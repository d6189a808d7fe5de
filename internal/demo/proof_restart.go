// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sluice-mesh/sluice/internal/lab"
)

const (
	loopWorkers = 8
	// loopPause is between two requests of one worker.
	loopPause = 10 * time.Millisecond
	// loopTimeout bounds one request: delay is allowed, loss is not.
	loopTimeout = 20 * time.Second
	// openTalks are the connections held open meanwhile.
	openTalks = 4
)

// attempt is one request on a connection of its own.
type attempt struct {
	began, ended time.Time
	err          error
}

// loop makes requests from a pod until it is stopped.
type loop struct {
	scene *scene
	from  *lab.Pod
	stop  chan struct{}
	wg    sync.WaitGroup

	mu       sync.Mutex
	attempts []attempt
}

func (s *scene) startLoop(from *lab.Pod, to ...netip.AddrPort) *loop {
	l := &loop{scene: s, from: from, stop: make(chan struct{})}
	for i := range loopWorkers {
		l.wg.Add(1)
		go l.work(to[i%len(to)])
	}
	return l
}

// finish stops the workers and returns every attempt.
func (l *loop) finish() []attempt {
	close(l.stop)
	l.wg.Wait()
	return l.attempts
}

func (l *loop) work(to netip.AddrPort) {
	defer l.wg.Done()
	for {
		a := attempt{began: time.Now()}
		a.err = l.request(to)
		a.ended = time.Now()
		l.mu.Lock()
		l.attempts = append(l.attempts, a)
		l.mu.Unlock()
		select {
		case <-l.stop:
			return
		case <-time.After(loopPause):
		}
	}
}

// request opens a connection, asks for a page and reads its status.
func (l *loop) request(to netip.AddrPort) error {
	c, err := l.scene.DialTimeout(l.from.NS, to.String(), loopTimeout)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(loopTimeout)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: server\r\nX-Marker: %s\r\nConnection: close\r\n\r\n", requestMarker); err != nil {
		return err
	}
	status, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err
	}
	if !strings.Contains(status, " 200 ") {
		return errors.New(strings.TrimSpace(status))
	}
	return nil
}

// tally sorts attempts by whether they were open at the moment of the event or began after it.
type tally struct {
	total, openThen, lost, after, refused int
	slowest                               time.Duration
	example                               error
}

func sortAttempts(attempts []attempt, event time.Time) (t tally) {
	for _, a := range attempts {
		t.total++
		began := a.began.After(event)
		switch {
		case began:
			t.after++
		case a.ended.After(event):
			t.openThen++
		}
		if a.err == nil {
			t.slowest = max(t.slowest, a.ended.Sub(a.began))
			continue
		}
		t.example = a.err
		if began || a.ended.Before(event) {
			t.refused++
		} else {
			t.lost++
		}
	}
	return t
}

func (t tally) String() string {
	s := fmt.Sprintf("%d of %d refused (%d begun after it), slowest %d ms", t.refused, t.total, t.after, t.slowest.Milliseconds())
	if t.example != nil {
		s += fmt.Sprintf(", e.g. %v", t.example)
	}
	return s
}

// proveRestart kills the server's ztunnel under load, then replaces it gracefully.
func proveRestart(s *scene, r *report) error {
	if err := s.proveKill(r); err != nil {
		return fmt.Errorf("kill: %w", err)
	}
	if err := s.proveUpgrade(r); err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	return nil
}

// serverHTTP is the server's page by both families and by its service.
func (s *scene) serverHTTP() []netip.AddrPort {
	return []netip.AddrPort{
		netip.AddrPortFrom(s.server.Addr4, httpPort), netip.AddrPortFrom(s.server.Addr6, httpPort), netip.AddrPortFrom(vip4, servicePort)}
}

func (s *scene) proveKill(r *report) error {
	talks, err := s.startTalks("kill")
	if err != nil {
		return err
	}
	defer stopTalks(talks)
	l := s.startLoop(s.client, s.serverHTTP()...)
	node := s.Nodes[1]
	_ = pause(time.Second, nil)
	killed := time.Now()
	err = node.Ztunnel.Signal(syscall.SIGKILL)
	if err == nil {
		err = pause(time.Second, node.StartZtunnel)
	}
	if err == nil {
		err = node.WaitReady()
	}
	ready := time.Now()
	_ = pause(2*time.Second, nil)
	t := sortAttempts(l.finish(), killed)
	if err != nil {
		return err
	}
	r.check(t.refused == 0 && t.after > 0, "kill -9 on node 2: new connections", "%v; ztunnel was away %.1f s", t, ready.Sub(killed).Seconds())
	broken := 0
	for _, talk := range talks {
		if _, why := talk.ticks(); why != "" {
			broken++
		}
	}
	r.figure("kill -9 on node 2: open connections lost", "%d of %d held, %d of %d requests under way", broken, len(talks), t.lost, t.openThen)
	return nil
}

// proveUpgrade starts a second ztunnel beside the first and then asks the first to go.
func (s *scene) proveUpgrade(r *report) error {
	talks, err := s.startTalks("upgrade")
	if err != nil {
		return err
	}
	defer stopTalks(talks)
	l := s.startLoop(s.client, s.serverHTTP()...)
	node, old := s.Nodes[1], s.Nodes[1].Ztunnel
	err = pause(time.Second, node.StartZtunnel)
	if err == nil {
		err = node.WaitReady()
	}
	if err == nil {
		err = pause(500*time.Millisecond, func() error { return old.Signal(syscall.SIGTERM) })
	}
	asked := time.Now()
	var held []error
	if err == nil {
		_ = pause(3*time.Second, nil)
		for _, talk := range talks {
			held = append(held, talk.moreTicks(3))
		}
	}
	t := sortAttempts(l.finish(), asked)
	if err != nil {
		return err
	}
	r.check(t.refused+t.lost == 0 && t.after > 0, "upgrade on node 2: new connections", "%v", t)
	r.check(errors.Join(held...) == nil && old.Alive(), "upgrade on node 2: open connections", "%s, the old ztunnel alive: %v", countErrors(held, "broken"), old.Alive())
	stopTalks(talks)
	took, err := within(talkTimeout, func() error {
		if old.Alive() {
			return errors.New("the old ztunnel still runs")
		}
		return nil
	})
	r.check(err == nil, "upgrade on node 2: the old ztunnel ends once its connections have", "%.1f s after they did", took.Seconds())
	return nil
}

func (s *scene) startTalks(name string) (talks []*talk, err error) {
	for i := range openTalks {
		addr := s.server.Addr(4 + i%2*2) // both families
		t, err := s.startTalk(s.client, fmt.Sprintf("%s-%d", name, i), addr.String())
		if err != nil {
			return talks, err
		}
		talks = append(talks, t)
	}
	return talks, nil
}

func stopTalks(talks []*talk) {
	for _, t := range talks {
		_ = t.Stop(time.Second)
	}
}

// pause lets the load run for a while, then does something.
func pause(d time.Duration, then func() error) error {
	time.Sleep(d)
	if then == nil {
		return nil
	}
	return then()
}

func countErrors(errs []error, word string) string {
	n, example := 0, ""
	for _, err := range errs {
		if err != nil {
			n++
			example = ", e.g. " + err.Error()
		}
	}
	return fmt.Sprintf("%d of %d %s%s", n, len(errs), word, example)
}
