// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// getTimeout bounds one HTTP request of the lab's own.
const getTimeout = 5 * time.Second

// Output runs a command inside a namespace to its end and returns what it printed on both channels.
func (l *Lab) Output(ns string, timeout time.Duration, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.WaitDelay = time.Second
	var out []byte
	err := In(ns, func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	if ctx.Err() != nil {
		err = fmt.Errorf("killed after %v", timeout)
	}
	return string(out), err
}

// Dial connects from inside a namespace to an address (not a host name).
func (l *Lab) Dial(ctx context.Context, ns, addr string) (conn net.Conn, err error) {
	d := net.Dialer{FallbackDelay: -1}
	d.SetMultipathTCP(false)
	err = In(ns, func() (err error) {
		conn, err = d.DialContext(ctx, "tcp", addr)
		return err
	})
	return conn, err
}

// Listen opens a TCP listener inside a namespace.
func (l *Lab) Listen(ns, addr string) (listener net.Listener, err error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	err = In(ns, func() (err error) {
		listener, err = lc.Listen(context.Background(), "tcp", addr)
		return err
	})
	return listener, err
}

// HTTP is a client whose connections begin inside a namespace.
func (l *Lab) HTTP(ns string, keepAlive bool) *http.Client {
	return &http.Client{
		Timeout: getTimeout,
		Transport: &http.Transport{
			DisableKeepAlives: !keepAlive,
			DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				return l.Dial(ctx, ns, addr)
			},
		},
	}
}

// Get fetches a page from inside a namespace. A status other than 200 is an error.
func (l *Lab) Get(ns, url string) (string, error) {
	resp, err := l.HTTP(ns, false).Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return string(body), err
}

// DialTimeout is Dial with a limit.
func (l *Lab) DialTimeout(ns, addr string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return l.Dial(ctx, ns, addr)
}

// Listening returns the TCP ports that are listened on inside a namespace.
func (l *Lab) Listening(ns string) (map[int]bool, error) {
	ports := map[int]bool{}
	err := In(ns, func() error {
		for _, name := range []string{"tcp", "tcp6"} {
			table, err := os.ReadFile("/proc/thread-self/net/" + name)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(table)) {
				// proc(5): local address and port in hexadecimal, remote one, state; 0A is LISTEN.
				fields := strings.Fields(line)
				if len(fields) < 4 || fields[3] != "0A" {
					continue
				}
				_, port, _ := strings.Cut(fields[1], ":")
				n, err := strconv.ParseUint(port, 16, 16)
				if err != nil {
					return fmt.Errorf("/proc/net/%s: %w", name, err)
				}
				ports[int(n)] = true
			}
		}
		return nil
	})
	return ports, err
}
