// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-mesh/sluice/internal/lab"
)

// proof is one claim of the README and the function that measures it.
type proof struct {
	title string
	run   func(*scene, *report) error
}

// proofs are in the order of the table. The first ones rely on nothing having happened before.
var proofs = []proof{
	{"requests arrive, with the client's own address", proveReach},
	{"the wire carries mTLS only", proveWire},
	{"both ztunnels name both identities", proveIdentity},
	{"STRICT refuses plaintext", proveStrict},
	{"a DENY policy cuts by identity", proveDeny},
	{"traffic out of the mesh stays in the kernel", provePassthrough},
	{"root in the pod cannot get out", proveHostilePod},
	{"ztunnel killed, ztunnel upgraded", proveRestart},
	{"a connection older than the enrolment lives on", proveEnrolment},
	{"what it costs", proveCost},
}

// report is the table that the demo prints.
type report struct {
	rows   []row
	number int
	failed int
}

type row struct {
	number          int
	mark            string // "ok", "FAIL" or "-" for a figure without a goal
	claim, measured string
}

// check adds a row that passes or fails.
func (r *report) check(ok bool, claim, format string, args ...any) {
	mark := "ok"
	if !ok {
		mark = "FAIL"
		r.failed++
	}
	r.rows = append(r.rows, row{r.number, mark, claim, fmt.Sprintf(format, args...)})
}

// figure adds a row that only informs.
func (r *report) figure(claim, format string, args ...any) {
	r.rows = append(r.rows, row{r.number, "-", claim, fmt.Sprintf(format, args...)})
}

// runProofs runs them all, also after one failed, and prints the table.
func (s *scene) runProofs(ctx context.Context) error {
	var err error
	if s.capture, err = s.StartCapture(s.NS("node1"), lab.WireIf); err != nil {
		return err
	}
	r := &report{}
	began := time.Now()
	for i, p := range proofs {
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		r.number = i + 1
		s.say("proof %d: %s", r.number, p.title)
		if err := p.run(s, r); err != nil {
			r.check(false, p.title, "%v", err)
		}
	}
	s.print(r)
	if r.failed > 0 {
		return fmt.Errorf("%d of %d rows failed", r.failed, len(r.rows))
	}
	s.say("%d proofs, %d rows, none failed, in %.0f s", len(proofs), len(r.rows), time.Since(began).Seconds())
	return nil
}

// print writes the table, its columns as wide as they have to be.
func (s *scene) print(r *report) {
	wide := 0
	for _, row := range r.rows {
		wide = max(wide, len([]rune(row.claim)))
	}
	last := 0
	for _, row := range r.rows {
		if row.number != last {
			fmt.Fprintf(s.out, "\n%2d  %s\n", row.number, proofs[row.number-1].title)
			last = row.number
		}
		fmt.Fprintf(s.out, "    %-4s  %-*s  %s\n", row.mark, wide, row.claim, row.measured)
	}
	fmt.Fprintln(s.out)
}
