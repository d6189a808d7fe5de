// SPDX-License-Identifier: Apache-2.0

package testutil

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// RequireRoot skips the test unless it runs as root. With CI=true it fails it instead: there a skip would be a test
// that nobody runs.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "needs root: it makes network namespaces")
	}
}

// RequireKernel skips the test (fails it with CI=true) if the running kernel is older than version, "6.6". feature
// says what the test needs it for.
func RequireKernel(t testing.TB, version, feature string) {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatalf("uname: %v", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	older, err := olderThan(release, version)
	if err != nil {
		t.Fatal(err)
	}
	if older {
		skip(t, fmt.Sprintf("%s needs Linux %s, this is %s", feature, version, release))
	}
}

func skip(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s (CI=true: a skip is a failure)", why)
	}
	t.Skip(why)
}

// olderThan compares the first two numbers of two kernel releases.
func olderThan(release, version string) (bool, error) {
	var have, want [2]int
	if _, err := fmt.Sscanf(release, "%d.%d", &have[0], &have[1]); err != nil {
		return false, fmt.Errorf("kernel release %q: %w", release, err)
	}
	if _, err := fmt.Sscanf(version, "%d.%d", &want[0], &want[1]); err != nil {
		return false, fmt.Errorf("kernel version %q: %w", version, err)
	}
	return have[0] < want[0] || have[0] == want[0] && have[1] < want[1], nil
}
