// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSameBinariesSameArchive(t *testing.T) {
	bin := t.TempDir()
	for _, name := range []string{"ztunnel", "sluice-installer", "sluice-cni"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#! "+name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var archives [2][]byte
	for i := range archives {
		out := t.TempDir()
		if err := run("linux/amd64", bin, out); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(out, "sluice-agent.oci.tar"))
		if err != nil {
			t.Fatal(err)
		}
		archives[i] = data
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("two runs over the same binaries differ")
	}
	checkLayout(t, archives[0])
}

// checkLayout follows index -> manifest -> config and layer by digest, as an importer does.
func checkLayout(t *testing.T, data []byte) {
	t.Helper()
	files := untar(t, data)
	for name, content := range files {
		if sum, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && sum != fmt.Sprintf("%x", sha256.Sum256(content)) {
			t.Errorf("%s: content has another digest", name)
		}
	}
	var index struct{ Manifests []descriptor }
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	decode(t, files["index.json"], &index)
	decode(t, files[blobPath(index.Manifests[0])], &manifest)
	var config struct{ Config struct{ Entrypoint []string } }
	decode(t, files[blobPath(manifest.Config)], &config)
	layer := untar(t, files[blobPath(manifest.Layers[0])])
	entry := strings.TrimPrefix(config.Config.Entrypoint[0], "/")
	if got, want := string(layer[entry]), "#! sluice-installer"; got != want {
		t.Errorf("entrypoint %s: got %q, want %q", entry, got, want)
	}
	if _, ok := layer["usr/local/bin/sluice-cni"]; !ok {
		t.Error("the agent's image lacks the plugin it installs")
	}
}

func blobPath(d descriptor) string { return strings.Replace(d.Digest, "sha256:", "blobs/sha256/", 1) }

func decode(t *testing.T, data []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatalf("%s: %v", data, err)
	}
}

func untar(t *testing.T, data []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		} else if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = content
	}
}
