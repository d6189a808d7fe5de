// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
)

// infoVersion is the version of PodInfo's encoding that this code writes, and the highest that it reads. Version 1 had
// neither attach modes nor settings beyond CaptureAll: an older release must not attach what has them.
const infoVersion = 2

// maxInfoBytes is the size of the record. A PodInfo of five interfaces and long names takes about 1 KiB.
const maxInfoBytes = 4096

// errForeignInfo reports a record that was read whole, but is not of this release's making.
var errForeignInfo = errors.New("decode pod info")

// PodInfo is what is recorded of a pod beside its programs. It outlives the process that attached it.
type PodInfo struct {
	ID          string `json:"id"` // the name of its folder; the caller's choice, without "/" and "."
	UID         string `json:"uid,omitempty"`
	Namespace   string `json:"namespace,omitempty"`
	Name        string `json:"name,omitempty"`
	ContainerID string `json:"containerID,omitempty"`
	Network     string `json:"network,omitempty"` // CNI network that the plugin was called for; empty: not by the plugin

	NetnsPath   string `json:"netnsPath"`
	NetnsInode  uint64 `json:"netnsInode"`
	NetnsCookie uint64 `json:"netnsCookie"` // never used again until the next boot, unlike the inode
	BootID      string `json:"bootID"`

	Interfaces    []string  `json:"interfaces"`              // inside the pod, with capture
	Captured      []Capture `json:"captured"`                // what those names were when capture was attached
	HostIfindexes []int     `json:"hostIfindexes,omitempty"` // on the host, with guard
	HostCookie    uint64    `json:"hostCookie,omitempty"`    // of the namespace that those are in
	CaptureAll    bool      `json:"captureAll,omitempty"`
	CaptureDNS    bool      `json:"captureDNS,omitempty"`
	BypassInbound bool      `json:"bypassInbound,omitempty"`
	IPv6          bool      `json:"ipv6,omitempty"` // IPv6 is on in the pod: rule, route and listeners are expected

	Addresses []netip.Addr `json:"addresses,omitempty"` // the pod's own
	Exclude   Exclusions   `json:"exclude,omitzero"`

	// LoopbackWasOpen says that lo's accept_local was set before us, so detaching leaves it.
	LoopbackWasOpen bool `json:"loopbackWasOpen,omitempty"`
}

// Capture is a device with capture. The pod may rename it and give its name to another: the index stays.
type Capture struct {
	Name    string `json:"name"`
	Ifindex int    `json:"ifindex"`
}

// ifindexes lists the devices with capture, each once.
func (i *PodInfo) ifindexes() []int {
	var all []int
	for _, c := range i.Captured {
		all = append(all, c.Ifindex)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// config is what AttachPod was called with, but for listeners.
func (i *PodInfo) config() PodConfig {
	return PodConfig{
		ID: i.ID, UID: i.UID, Namespace: i.Namespace, Name: i.Name, ContainerID: i.ContainerID, Network: i.Network,
		NetnsPath: i.NetnsPath, Interfaces: i.Interfaces, HostIfindexes: i.HostIfindexes, CaptureAll: i.CaptureAll,
		Addresses: i.Addresses, CaptureDNS: i.CaptureDNS, BypassInbound: i.BypassInbound, Exclude: i.Exclude,
	}
}

// infoSpec is a map of one record: a bpffs holds no files.
func infoSpec() *ebpf.MapSpec {
	return &ebpf.MapSpec{Name: "info", Type: ebpf.Array, KeySize: 4, ValueSize: maxInfoBytes, MaxEntries: 1}
}

type infoRecord struct {
	Version int `json:"version"`
	PodInfo
}

func writeInfo(m *ebpf.Map, info *PodInfo) error {
	text, err := json.Marshal(infoRecord{infoVersion, *info})
	if err != nil {
		return fmt.Errorf("encode pod info: %w", err)
	}
	if len(text) > maxInfoBytes {
		return fmt.Errorf("encode pod info: %d bytes do not fit into %d", len(text), maxInfoBytes)
	}
	value := make([]byte, maxInfoBytes)
	copy(value, text)
	if err := m.Put(uint32(0), value); err != nil {
		return fmt.Errorf("write pod info: %w", err)
	}
	return nil
}

// readInfo returns what it could read also with an error that wraps errForeignInfo.
func readInfo(m *ebpf.Map) (PodInfo, error) {
	value := make([]byte, maxInfoBytes)
	if err := m.Lookup(uint32(0), value); err != nil {
		return PodInfo{}, fmt.Errorf("read pod info: %w", err)
	}
	var record infoRecord
	text, _, _ := bytes.Cut(value, []byte{0})
	if err := json.Unmarshal(text, &record); err != nil {
		return PodInfo{}, fmt.Errorf("%w: %w: recreate the pod", errForeignInfo, err)
	}
	if record.Version < 1 || record.Version > infoVersion {
		return record.PodInfo, fmt.Errorf("%w: version %d, want at most %d: run the release that attached the pod, or recreate the pod",
			errForeignInfo, record.Version, infoVersion)
	}
	return record.PodInfo, nil
}

// validID says whether id can name a folder of a bpffs, which takes no dots.
func validID(id string) error {
	if id == "" {
		return errors.New("pod id is empty")
	}
	if len(id) > 255 || strings.ContainsAny(id, "/.\x00") {
		return fmt.Errorf("pod id %q: must be at most 255 bytes without \"/\" and \".\"", id)
	}
	return nil
}

func readBootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(text)), nil
}
