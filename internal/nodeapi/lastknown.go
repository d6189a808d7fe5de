// SPDX-License-Identifier: Apache-2.0

package nodeapi

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sluice-mesh/sluice/internal/atomicfile"
)

const (
	// LastKnownFile is what Save writes, in the state folder.
	LastKnownFile = "enrolment.json"
	readyFile     = "ready"
)

// LastKnown is the enrolment that the agent keeps on disk for the plugin to go by while the agent is away.
type LastKnown struct {
	Version int `json:"version"`
	// Namespaces lists every namespace in which a pod may be enrolled: labelled itself, or with a labelled pod.
	Namespaces []string `json:"namespaces"`
	// All lists every namespace that there was, nil if that is not known: only the Kubernetes API tells.
	All []string `json:"all,omitempty"`
	// Left is set by an agent that left the node for good, and could not take the plugin along.
	Left bool `json:"left,omitempty"`
}

// MayBeEnrolled reports whether a pod of the namespace could be enrolled: one of a namespace that came while no agent
// watched could.
func (l *LastKnown) MayBeEnrolled(namespace string) bool {
	return slices.Contains(l.Namespaces, namespace) || l.IsNew(namespace)
}

// IsNew reports whether the namespace came after l was saved.
func (l *LastKnown) IsNew(namespace string) bool {
	return l.All != nil && !slices.Contains(l.All, namespace)
}

// Equal reports whether l says the same as o.
func (l *LastKnown) Equal(o *LastKnown) bool {
	return slices.Equal(l.Namespaces, o.Namespaces) && slices.Equal(l.All, o.All)
}

// Save writes l to the state folder, mode 0600.
func (l *LastKnown) Save(stateDir string) error {
	l.Version = Version
	if l.Namespaces == nil {
		l.Namespaces = []string{}
	}
	b, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("save last known enrolment: %w", err)
	}
	return atomicfile.Write(filepath.Join(stateDir, LastKnownFile), append(b, '\n'), 0o600)
}

// LoadLastKnown reads what Save wrote. It returns an error wrapping fs.ErrNotExist when no agent ever ran here, and any
// other error when the file is not to be trusted; both mean that every pod may be enrolled.
func LoadLastKnown(stateDir string) (*LastKnown, error) {
	path := filepath.Join(stateDir, LastKnownFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("load last known enrolment: %w", err)
	}
	var l LastKnown
	if err := decode(b, &l); err != nil {
		return nil, fmt.Errorf("load last known enrolment %q: %w", path, err)
	}
	if l.Version != Version || l.Namespaces == nil {
		return nil, fmt.Errorf("load last known enrolment %q: version %d, want %d", path, l.Version, Version)
	}
	return &l, nil
}

// MarkReady notes in the run folder that the agent has been ready since the machine booted.
func MarkReady(runDir string) error {
	id, err := BootID()
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(runDir, readyFile), []byte(id+"\n"), 0o644)
}

// ReadySinceBoot reports whether MarkReady was called since the machine booted. A run folder that survives a reboot
// does no harm: the boot id tells.
func ReadySinceBoot(runDir string) (bool, error) {
	b, err := os.ReadFile(filepath.Join(runDir, readyFile))
	if os.IsNotExist(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read ready marker: %w", err)
	}
	id, err := BootID()
	if err != nil {
		return false, err
	}
	return strings.TrimSpace(string(b)) == id, nil
}

// BootID is the kernel's random id of this boot.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
