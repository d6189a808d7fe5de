// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"time"

	"github.com/sluice-mesh/sluice/internal/lab"
)

const (
	// effectLimit is how soon a change of policy must hold.
	effectLimit = 2 * time.Second
	// steadyRequests have to give the same answer once a policy holds.
	steadyRequests = 5
)

// request is one way to the server.
type request struct {
	from *lab.Pod
	url  string
}

// becomes waits until the request is answered or refused, as wanted, and then wants the same a few times more.
func (s *scene) becomes(q request, answered bool) (time.Duration, answer, error) {
	var last answer
	took, err := within(effectLimit, func() error {
		if last = s.curl(q.from, q.url+tag(), requestMarker); last.ok() != answered {
			return fmt.Errorf("got %v", last)
		}
		return nil
	})
	for i := 0; err == nil && i < steadyRequests; i++ {
		if last = s.curl(q.from, q.url+tag(), requestMarker); last.ok() != answered {
			err = fmt.Errorf("it did not last: %v", last)
		}
	}
	return took, last, err
}

// expect makes a row of becomes.
func (s *scene) expect(r *report, claim string, q request, answered bool) {
	took, last, err := s.becomes(q, answered)
	if err != nil {
		r.check(false, claim, "%v", err)
		return
	}
	r.check(true, claim, "%v after %d ms", last, took.Milliseconds())
}

func (s *scene) toServer(from *lab.Pod, fam int) request {
	return request{from, url(s.server.Addr(fam), httpPort, "")}
}

// proveStrict puts a STRICT PeerAuthentication into the manifests folder and takes it away.
func proveStrict(s *scene, r *report) error {
	for _, fam := range []int{4, 6} {
		s.expect(r, fmt.Sprintf("before: legacy -> server, IPv%d", fam), s.toServer(s.legacy, fam), true)
	}
	if err := s.apply("strict"); err != nil {
		return err
	}
	for _, fam := range []int{4, 6} {
		s.expect(r, fmt.Sprintf("STRICT: legacy -> server refused, IPv%d", fam), s.toServer(s.legacy, fam), false)
		s.expect(r, fmt.Sprintf("STRICT: client -> server, IPv%d", fam), s.toServer(s.client, fam), true)
	}
	if err := s.withdraw("strict"); err != nil {
		return err
	}
	s.expect(r, "removed: legacy -> server", s.toServer(s.legacy, 4), true)
	return nil
}

// proveDeny denies the client's identity while it holds a connection open.
func proveDeny(s *scene, r *report) error {
	t, err := s.startTalk(s.client, "deny", s.server.Addr4.String())
	if err != nil {
		return err
	}
	defer t.Kill()
	if err := s.apply("deny-client"); err != nil {
		return err
	}
	took, err := within(effectLimit, func() error {
		if n, broken := t.ticks(); broken == "" {
			return fmt.Errorf("open connection still works after %d round trips", n)
		}
		return nil
	})
	n, broken := t.ticks()
	r.check(err == nil, "DENY: the open connection is cut", "%q %d ms after the policy, %d round trips", broken, took.Milliseconds(), n)
	s.expect(r, "DENY: client -> server refused", s.toServer(s.client, 4), false)
	s.expect(r, "DENY: legacy -> server, another identity", s.toServer(s.legacy, 4), true)
	line, err := findLog(s.Nodes[1], "refusal by demo/deny-client", func(l logLine) bool {
		return l.text("policy") == "demo/deny-client" && l.text("src.identity") == clientID
	})
	r.check(err == nil, "DENY: reason and policy in the log", "verdict=%s policy=%s error=%q", line.text("verdict"), line.text("policy"), line.text("error"))
	if err := s.withdraw("deny-client"); err != nil {
		return err
	}
	s.expect(r, "removed: client -> server", s.toServer(s.client, 4), true)
	return nil
}
