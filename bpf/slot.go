// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Slot is the place of one of ztunnel's listeners in a pod: a role and an IP family.
type Slot uint32

const (
	SlotOutbound4 = Slot(dispatchSlotSLOT_OUTBOUND4) // connections that capture bounced; needs IP_TRANSPARENT
	SlotOutbound6 = Slot(dispatchSlotSLOT_OUTBOUND6)
	SlotInbound4  = Slot(dispatchSlotSLOT_INBOUND4) // connections from the network to any port but 15008
	SlotInbound6  = Slot(dispatchSlotSLOT_INBOUND6)
	SlotHBONE4    = Slot(dispatchSlotSLOT_HBONE4) // connections from the network to port 15008
	SlotHBONE6    = Slot(dispatchSlotSLOT_HBONE6)
	SlotDNSUDP4   = Slot(dispatchSlotSLOT_DNS_UDP4) // queries that capture bounced: UDP sockets; needs IP_TRANSPARENT
	SlotDNSUDP6   = Slot(dispatchSlotSLOT_DNS_UDP6)
	SlotDNSTCP4   = Slot(dispatchSlotSLOT_DNS_TCP4) // the same over TCP
	SlotDNSTCP6   = Slot(dispatchSlotSLOT_DNS_TCP6)
)

var slotNames = [...]string{
	SlotOutbound4: "outbound4",
	SlotOutbound6: "outbound6",
	SlotInbound4:  "inbound4",
	SlotInbound6:  "inbound6",
	SlotHBONE4:    "hbone4",
	SlotHBONE6:    "hbone6",
	SlotDNSUDP4:   "dnsudp4",
	SlotDNSUDP6:   "dnsudp6",
	SlotDNSTCP4:   "dnstcp4",
	SlotDNSTCP6:   "dnstcp6",
}

// DNSSlots lists the slots that a pod has beside [Slots] if its queries are captured.
func DNSSlots() []Slot { return []Slot{SlotDNSUDP4, SlotDNSUDP6, SlotDNSTCP4, SlotDNSTCP6} }

// Slots lists the slots of every pod.
func Slots() []Slot {
	return []Slot{SlotOutbound4, SlotOutbound6, SlotInbound4, SlotInbound6, SlotHBONE4, SlotHBONE6}
}

func (s Slot) String() string {
	if int(s) < len(slotNames) {
		return slotNames[s]
	}
	return fmt.Sprintf("slot-%d", uint32(s))
}

// IsIPv6 tells the slot's family. A pod without IPv6 leaves these empty.
func (s Slot) IsIPv6() bool { return s%2 == 1 }

// IsUDP tells the type of the slot's socket; the others are TCP listeners.
func (s Slot) IsUDP() bool { return s == SlotDNSUDP4 || s == SlotDNSUDP6 }

// isBounced tells slots of what capture sends back into the pod, for addresses that are not the pod's.
func (s Slot) isBounced() bool { return s <= SlotOutbound6 || s >= SlotDNSUDP4 }

// family is the socket domain of the slot's listener.
func (s Slot) family() int {
	if s.IsIPv6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}
