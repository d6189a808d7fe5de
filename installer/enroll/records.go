// SPDX-License-Identifier: Apache-2.0

package enroll

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/sluice-mesh/sluice/internal/atomicfile"
	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// record is what is kept on disk of a pod: what ADD told, and of which namespace and boot that was. Whether the pod is
// in the mesh is not in it: that is for the pins to say.
type record struct {
	BootID  string      `json:"bootID"`
	Netns   namespace   `json:"netns"`
	Sandbox nodeapi.Pod `json:"sandbox"`
	// Interfaces are what to attach to: the sandbox's, and those of other networks.
	Interfaces []nodeapi.Interface `json:"interfaces"`
	// Account is the service account, for when the API tells of a later pod of that name only.
	Account string `json:"account,omitempty"`
	// Fate is set once the pod is to be forgotten.
	Fate fate `json:"fate,omitempty"`
}

func (e *Enroller) recordPath(containerID string) string {
	return filepath.Join(e.recordsDir(), containerID+".json")
}

func (e *Enroller) saveRecord(p *pod) error {
	b, err := json.Marshal(record{BootID: e.bootID, Netns: p.netns, Sandbox: p.sandbox, Interfaces: e.interfacesOf(p), Account: e.serviceAccount(p), Fate: e.fateOf(p)})
	if err != nil {
		return fmt.Errorf("remember pod: %w", err)
	}
	// Not synced to disk: a record means nothing after the next boot, and every ADD waits for this.
	path := e.recordPath(p.id())
	temp := filepath.Join(e.recordsDir(), atomicfile.TempPrefix+filepath.Base(path))
	err = os.WriteFile(temp, append(b, '\n'), 0o600)
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return fmt.Errorf("remember pod: %w", err)
	}
	return nil
}

func (e *Enroller) fateOf(p *pod) fate {
	e.mu.Lock()
	defer e.mu.Unlock()
	return p.fate
}

func (e *Enroller) deleteRecord(containerID string) error {
	if err := os.Remove(e.recordPath(containerID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget pod: %w", err)
	}
	return nil
}

// loadRecords returns the pods of this boot. Files of an earlier boot, and what a crash left half-written, are removed;
// a file that cannot be understood is reported and removed too: the pins know all that matters.
func (e *Enroller) loadRecords() ([]record, error) {
	entries, err := os.ReadDir(e.recordsDir())
	if err != nil {
		return nil, fmt.Errorf("load known pods: %w", err)
	}
	var records []record
	for _, entry := range entries {
		path := filepath.Join(e.recordsDir(), entry.Name())
		r, err := readRecord(path)
		if err == nil && r.BootID == e.bootID && entry.Name() == r.Sandbox.ContainerID+".json" {
			records = append(records, *r)
			continue
		}
		if err != nil && !strings.HasPrefix(entry.Name(), atomicfile.TempPrefix) {
			e.log.Warn("known pod dropped: its file does not parse", "path", path, "err", err)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("load known pods: %w", err)
		}
	}
	return records, nil
}

func readRecord(path string) (*record, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, err
	}
	if r.Sandbox.ContainerID == "" || r.Sandbox.Netns == "" {
		return nil, errors.New("container id or network namespace is missing")
	}
	return &r, nil
}
