// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// enrolLimit is how soon a label in the manifests must have taken effect.
const enrolLimit = 5 * time.Second

const legacyID = "spiffe://cluster.local/ns/legacy/sa/legacy"

// proveEnrolment enrols the legacy pod while it has connections open in both directions, and lets it go again.
func proveEnrolment(s *scene, r *report) error {
	names := []string{"legacy -> server, opened before, IPv4", "legacy -> server, opened before, IPv6", "client -> legacy, opened before"}
	var talks []*talk
	defer func() { stopTalks(talks) }()
	for i, t := range []struct {
		from, to string
	}{{"legacy", s.server.Addr4.String()}, {"legacy", s.server.Addr6.String()}, {"client", s.legacy.Addr4.String()}} {
		from := s.legacy
		if t.from == "client" {
			from = s.client
		}
		open, err := s.startTalk(from, fmt.Sprintf("enrol-%d", i), t.to)
		if err != nil {
			return err
		}
		talks = append(talks, open)
	}
	if err := s.apply("enrol-legacy"); err != nil {
		return err
	}
	took, err := within(enrolLimit, func() error {
		if !s.enrolled(s.Nodes[0], s.legacy) {
			return errors.New("no programs attached")
		}
		return nil
	})
	r.check(err == nil, "legacy labelled: enrolled without a restart", "programs attached after %d ms", took.Milliseconds())
	s.expect(r, "legacy -> server, new", s.toServer(s.legacy, 4), true)
	line, err := findLog(s.Nodes[1], "inbound connection by "+legacyID, func(l logLine) bool { return l.text("src.identity") == legacyID })
	r.check(err == nil, "legacy -> server, new: in mTLS", "source %s", strings.TrimPrefix(line.text("src.identity"), "spiffe://"))
	for i, t := range talks {
		err := t.moreTicks(5)
		n, _ := t.ticks()
		r.check(err == nil, names[i], "%s", okOr(err, fmt.Sprintf("%d round trips, still going", n)))
	}
	if err := s.withdraw("enrol-legacy"); err != nil {
		return err
	}
	_, err = within(enrolLimit, func() error {
		if s.enrolled(s.Nodes[0], s.legacy) {
			return errors.New("programs are still attached")
		}
		return nil
	})
	r.check(err == nil, "label removed: released", "%s", okOr(err, "programs detached"))
	s.expect(r, "released: legacy -> server", s.toServer(s.legacy, 4), true)
	return nil
}

func okOr(err error, good string) string {
	if err != nil {
		return err.Error()
	}
	return good
}
