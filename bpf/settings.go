// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// nodeVersion is the version of the node's pins that this code makes, and the highest that it reads. Raise it when an
// older release must keep its hands off.
const nodeVersion = 1

const (
	settingsMap      = "settings"
	maxSettingsBytes = 256
)

// ErrNewerRelease reports pins of a release that is newer than this one. Nothing was changed.
var ErrNewerRelease = errors.New("pins are of a newer release")

// nodeSettings is what LoadNode decides for all who open the node after it.
type nodeSettings struct {
	Version    int        `json:"version"`
	AttachMode AttachMode `json:"attachMode"`
}

func settingsSpec() *ebpf.MapSpec {
	return &ebpf.MapSpec{Name: settingsMap, Type: ebpf.Array, KeySize: 4, ValueSize: maxSettingsBytes, MaxEntries: 1}
}

// readSettings returns what is recorded below root. A node without a record is of a release that knew tcx only, or none.
func readSettings(root string) (nodeSettings, error) {
	none := nodeSettings{AttachMode: AttachTCX}
	m, err := ebpf.LoadPinnedMap(filepath.Join(root, nodeDir, settingsMap), nil)
	if errors.Is(err, os.ErrNotExist) {
		return none, nil
	}
	if err != nil {
		return none, fmt.Errorf("node settings: %w", err)
	}
	defer func() { _ = m.Close() }()
	value := make([]byte, m.ValueSize())
	if err := m.Lookup(uint32(0), value); err != nil {
		return none, fmt.Errorf("node settings: %w", err)
	}
	text, _, _ := bytes.Cut(value, []byte{0})
	if len(text) == 0 { // whoever pinned it has not written it yet
		return none, nil
	}
	s := none
	if err := json.Unmarshal(text, &s); err != nil {
		return none, fmt.Errorf("node settings: %w", err)
	}
	if s.Version > nodeVersion {
		return none, fmt.Errorf("node settings: %w: version %d, want at most %d: run the release that wrote it, or a newer one",
			ErrNewerRelease, s.Version, nodeVersion)
	}
	return s, nil
}

func writeSettings(root string, s nodeSettings) error {
	m, err := createPinned(filepath.Join(root, nodeDir, settingsMap), settingsSpec())
	if err != nil {
		return fmt.Errorf("node settings: %w", err)
	}
	defer func() { _ = m.Close() }()
	text, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("node settings: %w", err)
	}
	value := make([]byte, maxSettingsBytes)
	copy(value, text)
	if err := m.Put(uint32(0), value); err != nil {
		return fmt.Errorf("node settings: %w", err)
	}
	return nil
}
