// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"bytes"
	"io"
	"testing"

	"golang.org/x/net/http2"
)

func TestWindowsAreAdvertisedAndSuffice(t *testing.T) {
	small := Windows{Stream: 70000, Connection: 80000, Frame: 16384}
	e := newEnv(t, echo, func(s *Server, p *PoolConfig) { s.Windows, p.Windows = small, small })
	p := dialRaw(t, e)
	settings := p.next(func(f http2.Frame) bool { _, ok := f.(*http2.SettingsFrame); return ok }).(*http2.SettingsFrame)
	for id, want := range map[http2.SettingID]uint32{http2.SettingInitialWindowSize: 70000, http2.SettingMaxFrameSize: 16384} {
		if got, _ := settings.Value(id); got != want {
			t.Errorf("%s: got %d, want %d", id, got, want)
		}
	}
	update := p.next(func(f http2.Frame) bool { _, ok := f.(*http2.WindowUpdateFrame); return ok }).(*http2.WindowUpdateFrame)
	if update.StreamID != 0 || update.Increment != 80000-65535 {
		t.Errorf("connection window: got %v", update)
	}

	s := e.mustConnect(t)
	defer s.Close()
	sent := bytes.Repeat([]byte("0123456789"), 100_000)
	go func() {
		_, _ = s.Write(sent)
		_ = s.CloseWrite()
	}()
	if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("got %d bytes, %v, want %d back", len(got), err, len(sent))
	}
}

func TestWindowsThatHTTP2CannotSay(t *testing.T) {
	if got, want := (Windows{}).filled(), (Windows{4 << 20, 16 << 20, 1 << 20}); got != want {
		t.Errorf("defaults: got %+v, want %+v", got, want)
	}
	if got, want := (Windows{1 << 40, 1, 1 << 30}).filled(), (Windows{1<<31 - 1, 65535, 1<<24 - 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
