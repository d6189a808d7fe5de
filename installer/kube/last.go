// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-mesh/sluice/internal/atomicfile"
)

// last is what is kept of the API over a restart.
type last struct {
	Namespaces []*corev1.Namespace `json:"namespaces"`
	Pods       []*corev1.Pod       `json:"pods"`
}

func (n *Node) lastPath() string { return filepath.Join(n.cfg.StateDir, "lastapi.json") }

func (n *Node) saveLast() error {
	var l last
	s := n.Snapshot()
	for _, ns := range s.Namespaces {
		l.Namespaces = append(l.Namespaces, ns.Namespace)
	}
	for _, p := range s.Pods {
		l.Pods = append(l.Pods, p.Pod)
	}
	data, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return atomicfile.Write(n.lastPath(), data, 0o600)
}

// loadLast puts in what was known before the restart, and returns it. On an error nothing is known.
func (n *Node) loadLast() (known []any, err error) {
	data, err := os.ReadFile(n.lastPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var l last
	if err := json.Unmarshal(data, &l); err != nil {
		return nil, err
	}
	for _, ns := range l.Namespaces {
		known = append(known, ns)
	}
	for _, p := range l.Pods {
		known = append(known, p)
	}
	for _, o := range known {
		if err := n.Put(o); err != nil {
			return nil, err
		}
	}
	return known, nil
}
