// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

// The clock and the verb may end in the same moment. Then one of them is heard, and the exit code is its own.
func TestStdoutHasOneWriter(t *testing.T) {
	failed := types.NewError(types.ErrInternal, "the verb failed", "")
	for name, tc := range map[string]struct {
		verb func(p *plugin) int
		want string // what the verb writes
		code int
	}{
		"a result":  {func(p *plugin) int { return p.finish(asCNI(p.succeed([]byte(`{"result":1}`)))) }, `{"result":1}`, 0},
		"an error":  {func(p *plugin) int { return p.finish(failed) }, `"the verb failed"`, 1},
		"no result": {func(p *plugin) int { return p.finish(nil) }, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			for range 2000 {
				var out bytes.Buffer // without a lock: the race detector watches the writers
				exited := -1
				p := &plugin{ctx: context.Background(), stdout: &out, stderr: io.Discard, gaveUp: make(chan struct{}), exit: func(code int) { exited = code }}
				var wg sync.WaitGroup
				wg.Go(p.giveUp)
				code := tc.verb(p)
				wg.Wait()
				wantOut, wantCode, wantExit := tc.want, tc.code, -1
				if p.writer.Load() == clock {
					wantOut, wantCode, wantExit = "not done after", 1, 1
				}
				var v any
				err := oneValue(out.String(), &v)
				if wantOut == "" && out.Len() == 0 {
					err = nil
				}
				if err != nil || !strings.Contains(out.String(), wantOut) || code != wantCode || exited != wantExit {
					t.Fatalf("got %q, code %d, exit %d, %v; want %q, code %d, exit %d", out.String(), code, exited, err, wantOut, wantCode, wantExit)
				}
			}
		})
	}
}

// asCNI is what skel makes of a verb's error.
func asCNI(err error) *types.Error {
	if err == nil {
		return nil
	}
	return types.NewError(types.ErrInternal, err.Error(), "")
}

// halfWriter takes some of what it is given.
type halfWriter struct{ bytes.Buffer }

func (w *halfWriter) Write(b []byte) (int, error) {
	n, _ := w.Buffer.Write(b[:len(b)/2])
	return n, errors.New("no space left")
}

func TestNoErrorFollowsHalfAResult(t *testing.T) {
	var out halfWriter
	var errs bytes.Buffer
	p := &plugin{ctx: context.Background(), stdout: &out, stderr: &errs, gaveUp: make(chan struct{}), exit: func(int) { t.Error("exit") }}
	if code := p.finish(asCNI(p.succeed([]byte(`{"result":1}`)))); code != 1 {
		t.Errorf("got code %d, want 1", code)
	}
	p.giveUp()
	if got := out.String(); got != `{"resu` || !strings.Contains(errs.String(), "no space left") {
		t.Errorf("stdout: got %q; stderr: %q", got, errs.String())
	}
}
