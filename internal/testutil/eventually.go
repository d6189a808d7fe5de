// SPDX-License-Identifier: Apache-2.0

package testutil

import (
	"testing"
	"time"
)

// pollInterval is how often Eventually tries.
const pollInterval = 20 * time.Millisecond

// Eventually calls check until it returns nil. After timeout it fails the test with check's last error.
func Eventually(t testing.TB, timeout time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %v", timeout, err)
		}
		time.Sleep(pollInterval)
	}
}
