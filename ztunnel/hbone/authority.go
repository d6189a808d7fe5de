// SPDX-License-Identifier: Apache-2.0

package hbone

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// ParseAuthority splits the :authority of a CONNECT request: "IPv4:port", "[IPv6]:port" or "hostname:port".
//
// host is the text before the port, without brackets. ip is valid only if host is an address; an IPv4-mapped IPv6 address
// comes out as IPv4. The port is 1 to 65535. User info, zones, a missing port, IPv6 without brackets and names that end
// in a number ("1.2.3", which some resolvers take for an address) are errors that wrap [ErrAuthority].
func ParseAuthority(authority string) (host string, ip netip.Addr, port uint16, err error) {
	host, ip, port, err = parseAuthority(authority)
	if err != nil {
		return "", netip.Addr{}, 0, fmt.Errorf("%w %q: %w", ErrAuthority, clip(authority), err)
	}
	return host, ip, port, nil
}

func parseAuthority(authority string) (string, netip.Addr, uint16, error) {
	colon := strings.LastIndexByte(authority, ':')
	if colon < 0 || strings.HasSuffix(authority, "]") {
		return "", netip.Addr{}, 0, fmt.Errorf("no port")
	}
	port, err := parsePort(authority[colon+1:])
	if err != nil {
		return "", netip.Addr{}, 0, err
	}
	host := authority[:colon]
	if strings.HasPrefix(host, "[") {
		ip, err := parseBracketed(host)
		return strings.Trim(host, "[]"), ip, port, err
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.Is6() {
			return "", netip.Addr{}, 0, fmt.Errorf("IPv6 address without brackets")
		}
		return host, ip, port, nil
	}
	return host, netip.Addr{}, port, checkHostname(host)
}

func parsePort(s string) (uint16, error) {
	if s == "" || s[0] < '1' || s[0] > '9' {
		return 0, fmt.Errorf("port %q is not a number from 1 to 65535", clip(s))
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("port %q is not a number from 1 to 65535", clip(s))
	}
	return uint16(n), nil
}

func parseBracketed(s string) (netip.Addr, error) {
	if !strings.HasSuffix(s, "]") {
		return netip.Addr{}, fmt.Errorf("bracket is not closed")
	}
	ip, err := netip.ParseAddr(s[1 : len(s)-1])
	if err != nil || !ip.Is6() || ip.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("no IPv6 address in brackets")
	}
	return ip.Unmap(), nil
}

// checkHostname accepts what Kubernetes and Istio call a host: dot-separated labels of letters, digits, '-' and '_'.
func checkHostname(host string) error {
	if host == "" || len(host) > 253 {
		return fmt.Errorf("host name of %d bytes", len(host))
	}
	labels := strings.Split(strings.TrimSuffix(host, "."), ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || strings.Trim(label, hostChars) != "" {
			return fmt.Errorf("not a host name")
		}
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return fmt.Errorf("host name ends in a number")
	}
	return nil
}

const hostChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"

// clip keeps foreign text in messages short.
func clip(s string) string {
	const most = 128
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
