// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

func get(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("get", flag.ExitOnError)
	timeout := f.Duration("timeout", 5*time.Second, "for the whole request")
	if err := f.Parse(args); err != nil {
		return err
	}
	body, err := fetch(ctx, *timeout, f.Arg(0))
	fmt.Print(body)
	return err
}

// fetch asks once, over a connection of its own.
func fetch(ctx context.Context, timeout time.Duration, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	r.Close = true
	var ended ends
	resp, err := (&http.Client{Transport: &http.Transport{DialContext: ended.dial}}).Do(r)
	if err != nil {
		return "", ended.with(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return string(body), err
}

// ends keeps the first error of connections: of a reset that its write meets, http's reader tells only that the writer has
// closed the connection.
type ends struct {
	mu    sync.Mutex
	first error
}

func (e *ends) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return noted{c, e}, nil
}

func (e *ends) note(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.first == nil {
		e.first = err
	}
}

// with is err, and what came before it if that says more.
func (e *ends) with(err error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.first == nil || errors.Is(err, e.first) {
		return err
	}
	return fmt.Errorf("%w, after %w", err, e.first)
}

type noted struct {
	net.Conn
	ends *ends
}

func (n noted) Read(b []byte) (int, error) {
	got, err := n.Conn.Read(b)
	n.ends.note(err)
	return got, err
}

func (n noted) Write(b []byte) (int, error) {
	put, err := n.Conn.Write(b)
	n.ends.note(err)
	return put, err
}

func ask(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("ask", flag.ExitOnError)
	timeout := f.Duration("timeout", 5*time.Second, "for the whole exchange")
	if err := f.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", f.Arg(0))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(*timeout)); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	fmt.Print(line)
	return err
}

// result is what load prints.
type result struct {
	Requests, Failures int
	Errors             []string       // the first few
	Servers            map[string]int // answers by who gave them
}

func load(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("load", flag.ExitOnError)
	during := f.Duration("for", 10*time.Second, "how long; a SIGTERM ends it before")
	every := f.Duration("every", 20*time.Millisecond, "from one request's begin to the next one's, if it has ended by then")
	timeout := f.Duration("timeout", 5*time.Second, "for one request")
	if err := f.Parse(args); err != nil {
		return err
	}
	r := result{Servers: map[string]int{}}
	tick := time.NewTicker(*every)
	defer tick.Stop()
	for end := time.Now().Add(*during); ctx.Err() == nil && time.Now().Before(end); {
		r.once(*timeout, f.Arg(0))
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		return err
	}
	if r.Failures > 0 {
		return fmt.Errorf("%d of %d requests failed", r.Failures, r.Requests)
	}
	return nil
}

func (r *result) once(timeout time.Duration, url string) {
	r.Requests++
	body, err := fetch(context.Background(), timeout, url)
	var server string
	if err == nil {
		_, err = fmt.Sscan(body, &server)
	}
	if err == nil {
		r.Servers[server]++
		return
	}
	r.Failures++
	if len(r.Errors) < 5 {
		r.Errors = append(r.Errors, time.Now().UTC().Format(time.TimeOnly)+" "+err.Error())
	}
}
