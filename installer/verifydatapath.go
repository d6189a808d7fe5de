// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sluice-mesh/sluice/bpf"
)

// repair is the way out of everything that the agent puts right by itself.
const repair = "the agent repairs this at its next resync; if it comes back, something in the pod undoes it"

// part is a line about the datapath; no words: it takes what is left.
type part struct {
	name, well string
	words      []string
}

// parts are the lines that [bpf.Pod.Check] is shown as: each takes the mismatches that begin with one of its words, the
// last takes what is left.
var parts = []part{
	{"links", "capture, dispatch, local and guard are attached where they were", []string{"link ", "interface "}},
	{"listeners", "every slot has a socket", []string{"slot "}},
	{"route", "the mark's route leads to lo", []string{"no IPv4 route", "no IPv6 route", "list IPv4 routes", "list IPv6 routes"}},
	{"rule", "the mark's rule comes before all others", []string{"no IPv4 rule", "no IPv6 rule", "list IPv4 rules", "list IPv6 rules"}},
	{"sysctl", "lo is up and takes packets from local addresses", []string{"net.", "lo"}},
	{"namespace", "is the one that was attached", nil},
}

// checkDatapath has every link, rule, route, sysctl and slot compared with what was attached.
func (v *verifier) checkDatapath() {
	v.addParts(mismatches(v.pod.Check()))
	info := v.pod.Info()
	v.ok("interfaces", "captured on %s, by %s", strings.Join(info.Interfaces, ", "), v.node.AttachMode())
	if len(info.HostIfindexes) == 0 {
		v.skipped("guard", "the pod's interfaces have no end on this host: what goes past tc in the pod is not stopped")
	} else {
		v.ok("guard", "on the host at interface %s", strings.Trim(fmt.Sprint(info.HostIfindexes), "[]"))
	}
}

// addParts makes a line of each part that is well, and of each mismatch. What no part takes is of the namespace: then the
// others may not have been looked at.
func (v *verifier) addParts(all []string) {
	byPart := make([][]string, len(parts))
	for _, m := range all {
		at := slices.IndexFunc(parts, func(p part) bool {
			return p.words == nil || slices.ContainsFunc(p.words, func(word string) bool { return strings.HasPrefix(m, word) })
		})
		byPart[at] = append(byPart[at], m)
	}
	last := len(parts) - 1
	for i, p := range parts {
		for _, m := range byPart[i] {
			v.failed(p.name, "%s (%s)", m, repair)
		}
		switch {
		case len(byPart[i]) > 0:
		case len(byPart[last]) > 0:
			v.skipped(p.name, "see %s", parts[last].name)
		default:
			v.ok(p.name, "%s", p.well)
		}
	}
}

// mismatches takes joined errors apart, without the words that wrap them.
func mismatches(err error) []string {
	if err == nil {
		return nil
	}
	for inner := err; inner != nil; inner = errors.Unwrap(inner) {
		if joined, ok := inner.(interface{ Unwrap() []error }); ok {
			var all []string
			for _, e := range joined.Unwrap() {
				all = append(all, mismatches(e)...)
			}
			return all
		}
	}
	return []string{err.Error()}
}

// checkLeaks comes last, and asks whether anything left the pod in clear meanwhile.
func (v *verifier) checkLeaks() {
	verdicts, err := v.pod.Verdicts()
	if err != nil {
		v.failed("leaks", "%v", err)
		return
	}
	switch ever, now := leaks(v.verdicts, verdicts); {
	case now > 0:
		v.failed("leaks", "guard stopped %d packets in clear during these checks: something in the pod works around capture (status shows which kind)", now)
	case ever > 0:
		v.ok("leaks", "none now; guard stopped %d packets in clear since the pod was attached (status shows which kind)", ever)
	default:
		v.ok("leaks", "guard never had to stop anything")
	}
}

// leaks adds up what guard stopped, until after and since before.
func leaks(before, after map[bpf.Verdict]uint64) (ever, since uint64) {
	for _, verdict := range leakVerdicts {
		ever += after[verdict]
		since += after[verdict] - before[verdict]
	}
	return ever, since
}
