// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"net/netip"
	"testing"
)

// TestLocalRange: an IPv4 range written as IPv6 is one of IPv4, or the policy that names it would never match.
func TestLocalRange(t *testing.T) {
	for text, want := range map[string]string{
		"10.1.2.3": "10.1.2.3/32", "::ffff:10.1.2.3": "10.1.2.3/32", "10.1.2.3/8": "10.0.0.0/8",
		"::ffff:10.0.0.0/104": "10.0.0.0/8", "fd00::1/64": "fd00::/64", "::ffff:10.0.0.0/90": "", "10.0.0.0/33": "", "x": "",
	} {
		got, err := localRange(text)
		if want == "" && err == nil || want != "" && (err != nil || got != netip.MustParsePrefix(want)) {
			t.Errorf("%s: got %v, %v, want %q", text, got, err, want)
		}
	}
}
