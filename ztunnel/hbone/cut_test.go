// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"crypto/tls"
	"errors"
	"net/netip"
	"testing"
	"time"
)

// TestCutEndsEachAsFound: before the next is judged, and without keeping new connections out meanwhile.
func TestCutEndsEachAsFound(t *testing.T) {
	for _, side := range []string{"pool", "server"} {
		t.Run(side, func(t *testing.T) {
			e := newEnv(t, echo)
			cut := e.pool.Cut
			if side == "server" {
				cut = e.srv.Cut
			}
			ended := make(chan struct{}, 2)
			for i := range 2 {
				s := e.from(t, byte(i+1))
				if s == nil {
					return
				}
				go func() {
					_, _ = s.Read(make([]byte, 1))
					_ = s.Close()
					ended <- struct{}{}
				}()
			}
			judged := 0
			cut(func(tls.ConnectionState) error {
				if judged++; judged == 2 {
					select {
					case <-ended:
						if s := e.from(t, 3); s != nil {
							_ = s.Close()
						}
					case <-time.After(10 * time.Second):
						t.Error("the first is not cut while the second is judged")
					}
				}
				return errors.New("cut")
			})
			<-ended
		})
	}
}

// from opens a stream on a connection of its own. It returns nil after a failure, which it reports.
func (e *env) from(t *testing.T, host byte) *Stream {
	key := e.key
	key.SourceIP = netip.AddrFrom4([4]byte{10, 0, 0, host})
	s, _, err := e.pool.Connect(t.Context(), key, e.dial, e.clientTLS, ConnectRequest{Authority: "10.0.0.1:80"})
	if err != nil {
		t.Errorf("connect: %v", err)
	}
	return s
}
