// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-mesh/sluice/internal/lab"
)

const (
	requestTimeout = 5 * time.Second
	talkTimeout    = 15 * time.Second
	commandTimeout = 30 * time.Second
)

// answer is what curl got.
type answer struct {
	status int // 0: none
	body   string
	err    string // curl's words
	took   time.Duration
}

func (a answer) ok() bool { return a.status == 200 && strings.Contains(a.body, responseMarker) }

func (a answer) String() string {
	if a.status != 0 {
		return strconv.Itoa(a.status)
	}
	return a.err
}

// curl requests a page from inside a pod, with a marker in a header.
func (s *scene) curl(from *lab.Pod, url, marker string) answer {
	began := time.Now()
	out, err := s.command(from, "curl", "-sS", "-m", strconv.Itoa(int(requestTimeout.Seconds())), "-H", "X-Marker: "+marker, "-w", "\n%{http_code}", url)
	a := answer{took: time.Since(began)}
	cut := strings.LastIndexByte(out, '\n')
	a.body = out[:max(cut, 0)]
	a.status, _ = strconv.Atoi(out[cut+1:])
	if err != nil {
		first, _, _ := strings.Cut(out, "\n")
		a.err = strings.TrimPrefix(first, "curl: ")
	}
	return a
}

// url is a page of a server; tag lets its log line be found.
func url(addr netip.Addr, port int, tag string) string {
	return "http://" + net.JoinHostPort(addr.String(), strconv.Itoa(port)) + "/" + tag
}

// tag returns a random word.
func tag() string { return strings.ToLower(rand.Text()[:10]) }

// loggedClient returns the client address that nginx wrote for the request with this tag.
func (s *scene) loggedClient(ns, tag string) (addr string, err error) {
	err = lab.Poll(2*time.Second, func() error {
		data, err := os.ReadFile(s.accessLog(ns))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(data)) {
			if fields := strings.Fields(line); len(fields) == 3 && fields[2] == "/"+tag {
				addr = fields[0]
				return nil
			}
		}
		return fmt.Errorf("nginx logged no request for /%s", tag)
	})
	return addr, err
}

// logLine is one line of a ztunnel's JSON log.
type logLine map[string]any

// text is a field as text; "" if it is not there.
func (l logLine) text(key string) string {
	if v, ok := l[key]; ok {
		return fmt.Sprint(v)
	}
	return ""
}

// findLog waits for a line that want accepts in the logs of the node's ztunnels.
func findLog(n *lab.Node, what string, want func(logLine) bool) (found logLine, err error) {
	err = lab.Poll(3*time.Second, func() error {
		for _, path := range n.ZtunnelLogs() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(data)) {
				l := logLine{}
				if json.Unmarshal([]byte(line), &l) == nil && want(l) {
					found = l
				}
			}
		}
		if found == nil {
			return fmt.Errorf("no line in ztunnel's log on %s: %s", n.Name, what)
		}
		return nil
	})
	return found, err
}

// metric adds up the samples of a metric on a node's ztunnel whose labels contain all of parts.
func metric(n *lab.Node, name string, parts ...string) (sum float64, err error) {
	page, err := n.Metrics()
	if err != nil {
		return 0, err
	}
lines:
	for line := range strings.Lines(page) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		for _, part := range parts {
			if !strings.Contains(rest, part) {
				continue lines
			}
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' '):]), 64)
		if err != nil && !strings.HasSuffix(name, "_total") {
			return 0, err
		}
		sum += v
	}
	return sum, nil
}
