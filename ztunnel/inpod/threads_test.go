// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"errors"
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/sluice-mesh/sluice/internal/netns"
)

// threadNamespaces are the network namespaces of this process's threads.
func threadNamespaces(t *testing.T) []netns.ID {
	t.Helper()
	paths, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var ids []netns.ID
	for _, path := range paths {
		ns, err := netns.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a thread that ended
		}
		if err != nil {
			t.Fatal(err)
		}
		id, err := ns.ID()
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
		_ = ns.Close()
	}
	return ids
}
