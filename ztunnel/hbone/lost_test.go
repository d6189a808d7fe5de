// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"testing"
)

func TestRequestIsSentAgainWhenTheConnectionIsLostBeforeTheAnswer(t *testing.T) {
	rs := newRawServer(t)
	ctx, cancel := withCancel(t)
	defer cancel()
	result := rs.connectAsync(ctx)
	first := rs.accept()
	first.request()
	must(t, first.conn.NetConn().Close())
	second := rs.accept()
	id := second.request()
	second.headers(id, false, ":status", "200")
	r := <-result
	must(t, r.err)
	must(t, r.s.Close())
}

func TestRequestIsGivenUpWhenEveryConnectionIsLost(t *testing.T) {
	rs := newRawServer(t)
	ctx, cancel := withCancel(t)
	defer cancel()
	result := rs.connectAsync(ctx)
	for range maxLost {
		p := rs.accept()
		p.request()
		must(t, p.conn.NetConn().Close())
	}
	if r := <-result; !lost(r.err) {
		t.Errorf("got %v, want the loss of the connection", r.err)
	}
	if got := rs.dialCount(); got != maxLost {
		t.Errorf("dials: got %d, want %d", got, maxLost)
	}
}

func TestRequestIsNotSentAgainAfterTheAnswer(t *testing.T) {
	e := newEnv(t, func(_ context.Context, r *ServerStream) {
		s, err := r.Accept(nil)
		if err == nil {
			s.Reset(CodeInternal)
		}
	})
	s := e.mustConnect(t)
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("read after reset: got no error")
	}
	if got := e.dialCount(); got != 1 {
		t.Errorf("dials: got %d, want 1", got)
	}
}
