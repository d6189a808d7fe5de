// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/enroll"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// errUnhealthy is what status ends with after it has printed what is wrong.
var errUnhealthy = errors.New("not all is well")

// statusTimeout bounds the question to the agent.
const statusTimeout = 10 * time.Second

// report is what status shows: the agent's view, or what the pins tell when no agent answers.
type report struct {
	enroll.Status
	// AgentError is why the agent did not answer.
	AgentError string `json:"agentError,omitempty"`
}

func statusCommand(ctx context.Context, args []string, stdout, _ io.Writer) error {
	var p paths
	var format string
	flags := newFlagSet("status", stdout)
	p.declare(flags.FlagSet)
	flags.StringVar(&format, "o", "table", "output: table or json")
	err := flags.parse(args, func() error {
		if format != "table" && format != "json" {
			return errors.Join(p.validate(), fmt.Errorf("-o: %q is neither table nor json", format))
		}
		return p.validate()
	})
	if err != nil {
		return err
	}
	r, err := readReport(ctx, &p)
	if err != nil {
		return err
	}
	if format == "json" {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		err = enc.Encode(r)
	} else {
		err = r.print(stdout)
	}
	if err == nil && !r.healthy() {
		err = errUnhealthy
	}
	return err
}

func readReport(ctx context.Context, p *paths) (*report, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	status, err := askStatus(ctx, nodeapi.Client{Socket: p.agentSocket()})
	if err == nil {
		return &report{Status: *status}, nil
	}
	r := &report{AgentError: err.Error(), Status: enroll.Status{Pods: []enroll.PodStatus{}}}
	node, err := bpf.OpenNode(p.PinRoot)
	switch {
	case errors.Is(err, bpf.ErrNotLoaded):
		return r, nil
	case errors.Is(err, fs.ErrPermission):
		r.AgentError += "; " + err.Error()
		return r, nil
	case err != nil:
		return nil, err
	}
	defer func() { _ = node.Close() }()
	r.readPins(node)
	return r, nil
}

// readPins fills in what can be told without an agent.
func (r *report) readPins(node *bpf.Node) {
	var err error
	r.AttachMode = node.AttachMode()
	if r.Host, err = node.HostStatus(); err != nil {
		r.HostProblem = err.Error()
	}
	if r.Pods, err = enroll.PinnedStatuses(node); err != nil {
		r.AgentError += "; " + err.Error()
	}
}

// askStatus puts the pages together.
func askStatus(ctx context.Context, client nodeapi.Client) (*enroll.Status, error) {
	var all *enroll.Status
	after := ""
	for {
		resp, fds, err := client.Do(ctx, &nodeapi.Request{Verb: nodeapi.VerbStatus, After: after})
		if err != nil {
			return nil, err
		}
		nodeapi.CloseFDs(fds)
		var page enroll.Status
		if err := json.Unmarshal(resp.Status, &page); err != nil {
			return nil, fmt.Errorf("read status: %w", err)
		}
		if all == nil {
			all = &page
		} else {
			all.Pods = append(all.Pods, page.Pods...)
		}
		if !page.More || len(page.Pods) == 0 {
			all.More = false
			return all, nil
		}
		after = page.Pods[len(page.Pods)-1].UID
	}
}

// listenersOf is one word if all slots agree: "6 held", else "4 held, 2 empty".
func listenersOf(p *enroll.PodStatus) string {
	counts := map[string]int{}
	for _, state := range p.Listeners {
		counts[state]++
	}
	var parts []string
	for _, state := range sortedKeys(counts) {
		parts = append(parts, fmt.Sprintf("%d %s", counts[state], state))
	}
	return strings.Join(parts, ", ")
}

func guard(p *enroll.PodStatus) string {
	switch {
	case len(p.Interfaces) == 0:
		return "-"
	case p.Guarded == 0:
		return "no guard"
	case p.Guarded < len(p.Interfaces):
		return fmt.Sprintf("%d of %d", p.Guarded, len(p.Interfaces))
	}
	return "yes"
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func join[T fmt.Stringer](list []T) string {
	var texts []string
	for _, v := range list {
		texts = append(texts, v.String())
	}
	return strings.Join(texts, ",")
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
