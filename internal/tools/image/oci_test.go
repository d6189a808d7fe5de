// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var bothArchs = options{archs: []string{"amd64", "arm64"}, registry: "localhost", tag: "dev", version: "v1"}

func TestSameBinariesSameArchive(t *testing.T) {
	first, second := agentArchive(t, bothArchs), agentArchive(t, bothArchs)
	if !bytes.Equal(first, second) {
		t.Error("two runs over the same binaries differ")
	}
	other := bothArchs
	other.version = "v2"
	if bytes.Equal(first, agentArchive(t, other)) {
		t.Error("another version gives the same archive: no label says it")
	}
}

// TestArchiveHoldsEachArchitecture follows index -> image index -> manifest -> config and layer by digest, as an
// importer does.
func TestArchiveHoldsEachArchitecture(t *testing.T) {
	files := untar(t, agentArchive(t, bothArchs))
	for name, content := range files {
		if sum, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && "sha256:"+sum != digestOf(content) {
			t.Errorf("%s: content has another digest", name)
		}
	}
	var index, image struct{ Manifests []descriptor }
	decode(t, files["index.json"], &index)
	if got, want := index.Manifests[0].Annotations["io.containerd.image.name"], "localhost/sluice-agent:dev"; got != want {
		t.Errorf("name: got %q, want %q", got, want)
	}
	decode(t, files[blobPath(index.Manifests[0])], &image)
	if len(image.Manifests) != 2 {
		t.Fatalf("got %d manifests, want one for each architecture", len(image.Manifests))
	}
	for i, m := range image.Manifests {
		if want := (platform{"linux", bothArchs.archs[i]}); *m.Platform != want {
			t.Errorf("platform: got %v, want %v", *m.Platform, want)
		}
		checkManifest(t, files, m)
	}
}

func checkManifest(t *testing.T, files map[string][]byte, d descriptor) {
	t.Helper()
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	decode(t, files[blobPath(d)], &manifest)
	var config struct {
		Architecture string
		Config       struct {
			Entrypoint []string
			Labels     map[string]string
		}
		Rootfs struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	decode(t, files[blobPath(manifest.Config)], &config)
	plain := gunzip(t, files[blobPath(manifest.Layers[0])])
	if got, want := config.Rootfs.DiffIDs[0], digestOf(plain); got != want {
		t.Errorf("diff id: got %s, want %s", got, want)
	}
	if got, want := config.Config.Labels["org.opencontainers.image.version"], "v1"; got != want {
		t.Errorf("version label: got %q, want %q", got, want)
	}
	layer := untar(t, plain)
	entry := strings.TrimPrefix(config.Config.Entrypoint[0], "/")
	if got, want := string(layer[entry]), "sluice-installer for "+d.Platform.Architecture; got != want || config.Architecture != d.Platform.Architecture {
		t.Errorf("entrypoint %s of %s: got %q, want %q", entry, config.Architecture, got, want)
	}
	if _, ok := layer["usr/local/bin/sluice-cni"]; !ok {
		t.Error("the agent's image lacks the plugin it installs")
	}
}

func TestMissingBinaryNamesTheWayOut(t *testing.T) {
	err := run(bothArchs, t.TempDir(), t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "make image") {
		t.Errorf("got %v, want an error that names make image", err)
	}
}

// agentArchive packs files that say what they are, and returns the agent's archive.
func agentArchive(t *testing.T, o options) []byte {
	t.Helper()
	bin, out := t.TempDir(), t.TempDir()
	for _, arch := range o.archs {
		dir := filepath.Join(bin, "linux-"+arch)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"ztunnel", "sluice-installer", "sluice-cni"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(name+" for "+arch), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := run(o, bin, out); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(out, "sluice-agent.oci.tar"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func blobPath(d descriptor) string { return strings.Replace(d.Digest, "sha256:", "blobs/sha256/", 1) }

func decode(t *testing.T, data []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatalf("%s: %v", data, err)
	}
}

func gunzip(t *testing.T, data []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return plain
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
