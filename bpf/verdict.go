// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
)

// Verdict is why a flow or a packet was steered, passed or refused. include/verdict.bpf.h says which program counts
// which, and what.
type Verdict uint32

const (
	VerdictCaptured         = Verdict(captureVerdictVERDICT_CAPTURED)
	VerdictPassthrough      = Verdict(captureVerdictVERDICT_PASSTHROUGH)
	VerdictReply            = Verdict(captureVerdictVERDICT_REPLY)
	VerdictProbeReply       = Verdict(captureVerdictVERDICT_PROBE_REPLY)
	VerdictGrandfathered    = Verdict(captureVerdictVERDICT_GRANDFATHERED)
	VerdictStrayControl     = Verdict(captureVerdictVERDICT_STRAY_CONTROL)
	VerdictStrayPassthrough = Verdict(captureVerdictVERDICT_STRAY_PASSTHROUGH)
	VerdictNotTCP           = Verdict(captureVerdictVERDICT_NOT_TCP)
	VerdictFragment         = Verdict(captureVerdictVERDICT_FRAGMENT)
	VerdictLocalRecorded    = Verdict(captureVerdictVERDICT_LOCAL_RECORDED)
	VerdictLoopback         = Verdict(captureVerdictVERDICT_LOOPBACK)
	VerdictLocalFlow        = Verdict(captureVerdictVERDICT_LOCAL_FLOW)
	VerdictProbe            = Verdict(captureVerdictVERDICT_PROBE)
	VerdictOutbound         = Verdict(captureVerdictVERDICT_OUTBOUND)
	VerdictInbound          = Verdict(captureVerdictVERDICT_INBOUND)
	VerdictHBONE            = Verdict(captureVerdictVERDICT_HBONE)
	VerdictExcluded         = Verdict(captureVerdictVERDICT_EXCLUDED)
	VerdictDNSCaptured      = Verdict(captureVerdictVERDICT_DNS_CAPTURED)
	VerdictDNS              = Verdict(captureVerdictVERDICT_DNS)
	VerdictBypassInbound    = Verdict(captureVerdictVERDICT_BYPASS_INBOUND)
	VerdictBypassReply      = Verdict(captureVerdictVERDICT_BYPASS_REPLY)

	VerdictDropStray        = Verdict(captureVerdictVERDICT_DROP_STRAY)
	VerdictDropFragment     = Verdict(captureVerdictVERDICT_DROP_FRAGMENT)
	VerdictDropMalformed    = Verdict(captureVerdictVERDICT_DROP_MALFORMED)
	VerdictDropHeaders      = Verdict(captureVerdictVERDICT_DROP_HEADERS)
	VerdictDropBounce       = Verdict(captureVerdictVERDICT_DROP_BOUNCE)
	VerdictDropNoListener   = Verdict(captureVerdictVERDICT_DROP_NO_LISTENER)
	VerdictDropLeak         = Verdict(captureVerdictVERDICT_DROP_LEAK)
	VerdictDropLeakFragment = Verdict(captureVerdictVERDICT_DROP_LEAK_FRAGMENT)
	VerdictDropLeakHeaders  = Verdict(captureVerdictVERDICT_DROP_LEAK_HEADERS)
	VerdictDropLeakTagged   = Verdict(captureVerdictVERDICT_DROP_LEAK_TAGGED)
)

var verdictNames = map[Verdict]string{
	VerdictCaptured:         "captured",
	VerdictPassthrough:      "passthrough",
	VerdictReply:            "reply",
	VerdictProbeReply:       "probe-reply",
	VerdictGrandfathered:    "grandfathered",
	VerdictStrayControl:     "stray-control",
	VerdictStrayPassthrough: "stray-passthrough",
	VerdictNotTCP:           "not-tcp",
	VerdictFragment:         "fragment",
	VerdictLocalRecorded:    "local-recorded",
	VerdictLoopback:         "loopback",
	VerdictLocalFlow:        "local-flow",
	VerdictProbe:            "probe",
	VerdictOutbound:         "outbound",
	VerdictExcluded:         "excluded",
	VerdictDNSCaptured:      "dns-captured",
	VerdictDNS:              "dns",
	VerdictBypassInbound:    "bypass-inbound",
	VerdictBypassReply:      "bypass-reply",
	VerdictInbound:          "inbound",
	VerdictHBONE:            "hbone",

	VerdictDropStray:        "drop-stray",
	VerdictDropFragment:     "drop-fragment",
	VerdictDropMalformed:    "drop-malformed",
	VerdictDropHeaders:      "drop-headers",
	VerdictDropBounce:       "drop-bounce",
	VerdictDropNoListener:   "drop-no-listener",
	VerdictDropLeak:         "drop-leak",
	VerdictDropLeakFragment: "drop-leak-fragment",
	VerdictDropLeakHeaders:  "drop-leak-headers",
	VerdictDropLeakTagged:   "drop-leak-tagged",
}

func (v Verdict) String() string {
	if name, ok := verdictNames[v]; ok {
		return name
	}
	return fmt.Sprintf("verdict-%d", uint32(v))
}

// IsDrop tells refusals from all others.
func (v Verdict) IsDrop() bool { return v >= Verdict(captureVerdictVERDICT_FIRST_DROP) }

// AllVerdicts lists them in the order of their numbers.
func AllVerdicts() []Verdict {
	all := make([]Verdict, 0, len(verdictNames))
	for v := range verdictNames {
		all = append(all, v)
	}
	slices.Sort(all)
	return all
}

// readVerdicts adds the counters up over all CPUs.
func readVerdicts(counters *ebpf.Map) (map[Verdict]uint64, error) {
	sums := make(map[Verdict]uint64, len(verdictNames))
	for v := range verdictNames {
		var perCPU []uint64
		sums[v] = 0
		if err := counters.Lookup(uint32(v), &perCPU); err != nil {
			return nil, fmt.Errorf("read counter %v: %w", v, err)
		}
		for _, n := range perCPU {
			sums[v] += n
		}
	}
	return sums, nil
}
