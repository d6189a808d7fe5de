// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Unload takes everything of the node off the kernel: all pods that are attached, the host's programs, and the maps. Nothing
// may use the pins afterwards, other processes' Nodes included. It continues past errors. n is to be closed all the same.
func (n *Node) Unload() error {
	_, err := n.Collect(func(PodInfo) bool { return false })
	err = errors.Join(err, n.DetachHost(), os.RemoveAll(n.root))
	if err != nil {
		return fmt.Errorf("unload: %w", err)
	}
	_ = os.Remove(filepath.Dir(n.root)) // if nothing else is in it
	return nil
}
