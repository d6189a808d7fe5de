// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
)

func TestParseAuthority(t *testing.T) {
	tests := []struct {
		in, host, ip string
		port         uint16
	}{
		{"10.0.0.1:80", "10.0.0.1", "10.0.0.1", 80},
		{"[fd00::1]:65535", "fd00::1", "fd00::1", 65535},
		{"[::ffff:10.0.0.1]:1", "::ffff:10.0.0.1", "10.0.0.1", 1},
		{"web.demo.svc.cluster.local:8080", "web.demo.svc.cluster.local", "", 8080},
		{"localhost:1", "localhost", "", 1},
		{"a_b-c.d.:9", "a_b-c.d.", "", 9},
	}
	for _, tt := range tests {
		host, ip, port, err := ParseAuthority(tt.in)
		want, _ := netip.ParseAddr(tt.ip)
		if err != nil || host != tt.host || ip != want || port != tt.port {
			t.Errorf("%q: got %q, %v, %d, %v", tt.in, host, ip, port, err)
		}
	}
}

func TestParseAuthorityErrors(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", `bad authority "": no port`},
		{"10.0.0.1", "no port"},
		{"[fd00::1]", "no port"},
		{"10.0.0.1:", `port "" is not a number from 1 to 65535`},
		{"10.0.0.1:0", `port "0" is not`},
		{"10.0.0.1:080", `port "080" is not`},
		{"10.0.0.1:+80", `port "+80" is not`},
		{"10.0.0.1:65536", `port "65536" is not`},
		{"10.0.0.1:http", `port "http" is not`},
		{"fd00::1:80", "IPv6 address without brackets"},
		{"[10.0.0.1]:80", "no IPv6 address in brackets"},
		{"[fe80::1%eth0]:80", "no IPv6 address in brackets"},
		{"[]:80", "no IPv6 address in brackets"},
		{"[fd00::1:80", "bracket is not closed"},
		{":80", "host name of 0 bytes"},
		{"user@host:80", "not a host name"},
		{"host/path:80", "not a host name"},
		{"a b:80", "not a host name"},
		{"a..b:80", "not a host name"},
		{"1.2.3:80", "ends in a number"},
		{"256.1.1.1:80", "ends in a number"},
		{"127.1:80", "ends in a number"},
		{strings.Repeat("a", 300) + ":80", "host name of 300 bytes"},
		{strings.Repeat("a", 64) + ":80", "not a host name"},
	}
	for _, tt := range tests {
		_, _, _, err := ParseAuthority(tt.in)
		if !errors.Is(err, ErrAuthority) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: got %v, want %q", tt.in, err, tt.want)
		}
	}
}

func FuzzParseAuthority(f *testing.F) {
	for _, s := range []string{"10.0.0.1:80", "[fd00::1]:80", "a.b:1", "[::]:1", "1.2.3:4", ":", "[", "]:1", "a:b:1", "\x00:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		host, ip, port, err := ParseAuthority(s)
		if err != nil {
			return
		}
		if port == 0 || host == "" {
			t.Fatalf("%q: host %q, port %d", s, host, port)
		}
		// What is accepted means the same to the standard library, and to us when put together again.
		again := net.JoinHostPort(host, strconv.Itoa(int(port)))
		if again != s {
			t.Fatalf("%q comes back as %q", s, again)
		}
		if std, err := netip.ParseAddr(host); (err == nil) != ip.IsValid() || err == nil && std.Unmap() != ip {
			t.Fatalf("%q: ip %v, standard library %v, %v", s, ip, std, err)
		}
	})
}
