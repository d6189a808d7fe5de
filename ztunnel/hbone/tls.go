// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
)

var errNoALPN = errors.New("peer does not speak h2 (ALPN)")

// tlsConfig is the caller's with what the engine decides: ALPN, records of full size, and no resumption, because a
// resumed session would skip VerifyPeerCertificate.
func tlsConfig(base *tls.Config) *tls.Config {
	cfg := base.Clone()
	cfg.NextProtos = []string{"h2"}
	cfg.DynamicRecordSizingDisabled = true
	cfg.SessionTicketsDisabled = true
	cfg.ClientSessionCache = nil
	if choose := cfg.GetConfigForClient; choose != nil {
		cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			chosen, err := choose(hello)
			if err != nil || chosen == nil {
				return nil, err
			}
			return tlsConfig(chosen), nil
		}
	}
	return cfg
}

// shake runs the handshake and checks that both ends agreed on h2. On error the connection is closed.
func shake(ctx context.Context, tc *tls.Conn, w *wire) (tls.ConnectionState, error) {
	err := tc.HandshakeContext(ctx)
	if err != nil && context.Cause(ctx) != nil {
		err = context.Cause(ctx)
	}
	state := tc.ConnectionState()
	if err == nil && state.NegotiatedProtocol != "h2" {
		err = errNoALPN
	}
	if err != nil {
		_ = w.Conn.Close()
		w.drop()
		return state, &opError{phase: ErrTLS, err: fmt.Errorf("%s: %w", addrOf(w.Conn), err)}
	}
	return state, nil
}

func addrOf(c net.Conn) string {
	if a := c.RemoteAddr(); a != nil {
		return a.String()
	}
	return "peer"
}
