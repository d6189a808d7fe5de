// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"io"
	"testing"

	"golang.org/x/net/http2"
)

// TestAnswerBeforeAResetArrives: an application answers without reading all of the request and closes, which resets its
// connection. Its answer arrives all the same, as it would without a mesh.
func TestAnswerBeforeAResetArrives(t *testing.T) {
	const answer = "HTTP/1.1 413 Content Too Large\r\n\r\n"
	e := newEnv(t, func(_ context.Context, r *ServerStream) {
		far, app := tcpPair(t)
		go func() {
			_, _ = io.ReadFull(app, make([]byte, 16))
			_, _ = io.WriteString(app, answer)
			_ = app.Close()
		}()
		if s, err := r.Accept(nil); err == nil {
			_ = Splice(far, s, nil, nil)
		}
	})
	for i := range 50 {
		near, app := tcpPair(t)
		s := e.mustConnect(t)
		go func() { _ = Splice(near, s, nil, nil) }()
		_, err := app.Write(make([]byte, 64))
		must(t, err)
		got := make([]byte, len(answer))
		if n, err := io.ReadFull(app, got); err != nil {
			t.Fatalf("request %d: got %q, %v, want the answer", i, got[:n], err)
		}
		if _, err := app.Read(got); !isReset(err) {
			t.Fatalf("request %d: after the answer got %v, want connection reset", i, err)
		}
	}
}

func TestResetAfterTheEndIsNoError(t *testing.T) {
	s, p, id := answered(t)
	must(t, p.WriteData(id, true, []byte("answer")))
	must(t, p.WriteRSTStream(id, http2.ErrCode(CodeConnect)))
	eventually(t, func() bool { return !s.alive() })
	got, err := io.ReadAll(s)
	if err != nil || string(got) != "answer" {
		t.Errorf("got %q, %v, want \"answer\" and EOF", got, err)
	}
	_, err = s.Write([]byte("x"))
	wantStreamError(t, err, CodeConnect, true)
}

// TestApplicationResetWhileItIsWrittenTo: the write learns of the reset before the read does. What the application said
// before arrives, and then a reset and not an end.
func TestApplicationResetWhileItIsWrittenTo(t *testing.T) {
	for range 20 {
		s, p, id := answered(t)
		near, app := tcpPair(t)
		_, err := app.Write([]byte("answer"))
		must(t, err)
		must(t, app.SetLinger(0))
		must(t, app.Close())
		must(t, p.WriteData(id, false, []byte("request")))
		eventually(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.head != nil })
		done := make(chan error, 1)
		go func() { done <- Splice(near, s, nil, nil) }()
		got := ""
		p.next(func(f http2.Frame) bool {
			if d, ok := f.(*http2.DataFrame); ok {
				got += string(d.Data())
			}
			if f.Header().Flags.Has(http2.FlagDataEndStream) && f.Header().Type == http2.FrameData {
				t.Error("got END_STREAM, want RST_STREAM")
			}
			return f.Header().Type == http2.FrameRSTStream
		})
		if got != "answer" {
			t.Errorf("got %q, want \"answer\"", got)
		}
		if err := <-done; err == nil {
			t.Error("got nil, want why it ended")
		}
	}
}

// TestLocalFaultsResetTheStream: a time-out or a close of the application's socket is not the end of its data.
func TestLocalFaultsResetTheStream(t *testing.T) {
	s, p, id := answered(t)
	near, app := tcpPair(t)
	done := make(chan error, 1)
	go func() { done <- Splice(near, s, nil, nil) }()
	_, err := app.Write([]byte("part"))
	must(t, err)
	p.next(func(f http2.Frame) bool { return f.Header().Type == http2.FrameData })
	must(t, near.Close())
	p.wantReset(id, CodeConnect)
	if err := <-done; err == nil {
		t.Error("got nil, want why it ended")
	}
}
