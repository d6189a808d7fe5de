// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/sluice-mesh/sluice/ztunnel/hbone"
)

// TestWhatEndsConnectionsEveryDay is what ambient section 4.7 counts as graceful, and what it does not.
func TestWhatEndsConnectionsEveryDay(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want bool
	}{
		{syscall.ECONNRESET, true},
		{&os.SyscallError{Syscall: "write", Err: syscall.EPIPE}, true},
		{syscall.ETIMEDOUT, false},
		{syscall.EHOSTUNREACH, false},
		{&hbone.StreamError{Code: hbone.CodeConnect, Remote: true}, true},
		{&hbone.StreamError{Code: hbone.CodeNo, Remote: true}, true},
		{&hbone.StreamError{Code: hbone.CodeCancel, Remote: true}, true},
		{&hbone.StreamError{Code: hbone.CodeStreamClosed, Remote: true}, true},
		{&hbone.StreamError{Code: hbone.CodeProtocol, Remote: true}, false},
		{&hbone.StreamError{Code: hbone.CodeConnect}, false},
		{&hbone.StreamError{Code: hbone.CodeStreamClosed}, false},
	} {
		if got := isQuiet(fmt.Errorf("in the middle: %w", tc.err)); got != tc.want {
			t.Errorf("%v: got %v, want %v", tc.err, got, tc.want)
		}
	}
}
