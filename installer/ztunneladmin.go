// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/sluice-mesh/sluice/installer/enroll"
	"github.com/sluice-mesh/sluice/internal/netns"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// adminTimeout bounds a question to ztunnel's admin page.
const adminTimeout = 5 * time.Second

// ztunnelAdmin is the admin page of the node's newest ztunnel. The page is on the loopback of ztunnel's own network namespace,
// which is a pod's on Kubernetes.
type ztunnelAdmin struct {
	paths   *paths
	address string
	client  *http.Client // nil before the first question
}

func (a *ztunnelAdmin) declare(fs *flag.FlagSet) {
	fs.StringVar(&a.address, "ztunnel-admin", "127.0.0.1:15000", "`address` of ztunnel's admin page, in the network namespace of the newest ztunnel that the agent knows; if it tells of none, in this one")
}

// get asks a page. Not safe for concurrent use.
func (a *ztunnelAdmin) get(ctx context.Context, page string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	if a.client == nil {
		a.client = &http.Client{Transport: &http.Transport{DialContext: a.dialer(ctx)}}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+a.address+page, nil)
	if err != nil {
		return err
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return fmt.Errorf("ask ztunnel's admin page: %w (is ztunnel running on this node, and its --admin-address %s?)", err, a.address)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask ztunnel's admin page %s: %s", page, resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("read ztunnel's admin page %s: %w", page, err)
	}
	return nil
}

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// dialer returns what connects to where the newest ztunnel is.
func (a *ztunnelAdmin) dialer(ctx context.Context) dialFunc {
	here := (&net.Dialer{FallbackDelay: -1}).DialContext // one after the other: a race of addresses leaves the thread, and the namespace
	ctx, cancel := context.WithTimeout(ctx, adminTimeout/2)
	defer cancel()
	pids, err := ztunnelPIDs(ctx, nodeapi.Client{Socket: a.paths.agentSocket()})
	if err != nil || len(pids) == 0 {
		return func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, dialErr := here(ctx, network, address)
			if dialErr != nil && err != nil {
				dialErr = fmt.Errorf("%w; no agent says where else ztunnel is: %w", dialErr, err)
			}
			return conn, dialErr
		}
	}
	pid := pids[len(pids)-1]
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		ns, err := netns.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil {
			return nil, fmt.Errorf("network namespace of ztunnel: %w", err)
		}
		defer func() { _ = ns.Close() }()
		err = ns.Do(func() (err error) {
			conn, err = here(ctx, network, address)
			return err
		})
		return conn, err
	}
}

// ztunnelPIDs are the process numbers of the ztunnels that an agent knows, the newest last.
func ztunnelPIDs(ctx context.Context, agent nodeapi.Client) ([]int, error) {
	resp, fds, err := agent.Do(ctx, &nodeapi.Request{Verb: nodeapi.VerbStatus})
	if err != nil {
		return nil, err
	}
	nodeapi.CloseFDs(fds)
	var page enroll.Status
	if err := json.Unmarshal(resp.Status, &page); err != nil {
		return nil, fmt.Errorf("read status: %w", err)
	}
	return slices.DeleteFunc(page.ZtunnelPIDs, func(pid int) bool { return pid <= 0 }), nil
}
