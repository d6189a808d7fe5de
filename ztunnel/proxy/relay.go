// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"io"
	"net"
	"sync"
)

// relay copies between two TCP connections until both directions have ended, or ctx ends. An end of data on one side
// becomes a half-close on the other; an error ends both directions with a reset. It closes both.
//
// Bare TCP connections let io.Copy splice in the kernel.
func relay(ctx context.Context, a, b *net.TCPConn) (fromA, fromB uint64, err error) {
	end := sync.OnceFunc(func() { abort(a); abort(b) })
	defer context.AfterFunc(ctx, end)()
	var back sync.WaitGroup
	var backErr error
	back.Go(func() { fromB, backErr = pump(a, b, end) })
	fromA, err = pump(b, a, end)
	back.Wait()
	_ = a.Close()
	_ = b.Close()
	if cause := context.Cause(ctx); cause != nil {
		return fromA, fromB, cause
	}
	if err == nil {
		err = backErr
	}
	return fromA, fromB, err
}

// pump copies one direction. What peers do every day is no error, but it ends the other direction too.
func pump(dst, src *net.TCPConn, end func()) (uint64, error) {
	n, err := io.Copy(dst, src)
	if err != nil {
		end()
		if isQuiet(err) {
			err = nil
		}
		return uint64(n), err
	}
	_ = dst.CloseWrite()
	return uint64(n), nil
}
