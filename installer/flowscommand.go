// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/sluice-mesh/sluice/installer/flows"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// flowsCommand shows the connections that the agent knows of, and with --follow those that come.
func flowsCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var p paths
	var format, pod string
	var follow bool
	fs := newFlagSet("flows", stdout)
	p.declare(fs.FlagSet)
	fs.BoolVar(&follow, "follow", false, "go on with every event until interrupted")
	fs.StringVar(&pod, "pod", "", "only this pod: NAMESPACE/NAME, name or uid")
	fs.StringVar(&format, "o", "table", "output: table or json (an object per line)")
	err := fs.parse(args, func() error {
		if format != "table" && format != "json" {
			return errors.Join(p.validate(), fmt.Errorf("-o: %q is neither table nor json", format))
		}
		return p.validate()
	})
	if err != nil {
		return err
	}
	show := flowTable(stdout)
	if format == "json" {
		show = func(f *flows.Flow) error { return json.NewEncoder(stdout).Encode(f) }
	}
	client := nodeapi.Client{Socket: p.agentSocket()}
	return client.Stream(ctx, &nodeapi.Request{Verb: nodeapi.VerbFlows, Follow: follow}, func(packet json.RawMessage) error {
		var f flows.Flow
		if err := json.Unmarshal(packet, &f); err != nil {
			return fmt.Errorf("read flow: %w", err)
		}
		if f.Missed > 0 {
			fmt.Fprintf(stderr, "%d events were missed: this reader is too slow\n", f.Missed)
		}
		if !isPod(pod, f.Namespace, f.Pod, f.UID) {
			return nil
		}
		return show(&f)
	})
}

// isPod tells whether what a user typed means this pod; nothing means all.
func isPod(typed, namespace, name, uid string) bool {
	return typed == "" || typed == name || typed == uid || typed == namespace+"/"+name
}

const flowColumns = "%-12s  %-7s  %-28s  %-11s  %-42s  %-42s  %12s  %12s  %9s  %7s  %s\n"

// flowTable prints a line per flow, in columns that are wide enough for most: a stream cannot wait for the widest.
func flowTable(w io.Writer) func(*flows.Flow) error {
	head := true
	return func(f *flows.Flow) error {
		if head {
			head = false
			if _, err := fmt.Fprintf(w, flowColumns, "TIME", "EVENT", "POD", "PATH", "FROM", "TO", "SENT", "RECEIVED", "RTT", "RETRANS", "STATE"); err != nil {
				return err
			}
		}
		from, to := f.Local, f.Remote
		if !f.Outbound {
			from, to = to, from
		}
		event := f.Kind
		if f.Refused {
			event = "refused"
		}
		line := fmt.Sprintf(flowColumns, f.At.Format("15:04:05.000"), event, dash(f.Namespace)+"/"+dash(f.Pod), f.Path, from, to,
			fmt.Sprint(f.Sent), fmt.Sprint(f.Received), (time.Duration(f.RTTMicro) * time.Microsecond).String(), fmt.Sprint(f.Retransmits), f.State)
		_, err := io.WriteString(w, strings.TrimRight(line, " \n")+"\n")
		return err
	}
}
