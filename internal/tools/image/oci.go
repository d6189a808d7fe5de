// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const (
	mediaIndex    = "application/vnd.oci.image.index.v1+json"
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaConfig   = "application/vnd.oci.image.config.v1+json"
	mediaLayer    = "application/vnd.oci.image.layer.v1.tar"

	binDir = "usr/local/bin/"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// layerOf is a tar of the binaries below /usr/local/bin, owned by root, dated 1970.
func layerOf(bin string, files []string) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, dir := range []string{"usr/", "usr/local/", binDir} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	for _, name := range files {
		data, err := os.ReadFile(filepath.Join(bin, name))
		if err != nil {
			return nil, fmt.Errorf("%w (make build makes it)", err)
		}
		if err := addFile(w, binDir+name, 0o755, data); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), w.Close()
}

func addFile(w *tar.Writer, name string, mode int64, data []byte) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// archive writes an OCI image layout as a tar: blobs by digest, then the index that names the manifest.
type archive struct {
	w   *tar.Writer
	err error
}

func (a *archive) blob(mediaType string, data []byte) descriptor {
	sum := fmt.Sprintf("%x", sha256.Sum256(data))
	if a.err == nil {
		a.err = addFile(a.w, "blobs/sha256/"+sum, 0o644, data)
	}
	return descriptor{MediaType: mediaType, Digest: "sha256:" + sum, Size: len(data)}
}

func (a *archive) json(mediaType string, v any) descriptor {
	data, err := json.Marshal(v)
	if err != nil && a.err == nil {
		a.err = err
	}
	return a.blob(mediaType, data)
}

// writeArchive writes the image beside its final name and renames it. It returns the manifest's digest.
func writeArchive(path string, img image, goos, arch string, layer []byte) (digest string, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".image-")
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	a := &archive{w: tar.NewWriter(f)}

	layers := []descriptor{a.blob(mediaLayer, layer)}
	config := a.json(mediaConfig, map[string]any{
		"os": goos, "architecture": arch, "created": "1970-01-01T00:00:00Z",
		"config": map[string]any{"Entrypoint": []string{"/" + binDir + img.files[0]}, "Env": []string{"PATH=/" + strings.TrimSuffix(binDir, "/")}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layers[0].Digest}},
	})
	manifest := a.json(mediaManifest, map[string]any{"schemaVersion": 2, "mediaType": mediaManifest, "config": config, "layers": layers})
	manifest.Annotations = map[string]string{"org.opencontainers.image.ref.name": img.name + ":latest"}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": mediaIndex, "manifests": []descriptor{manifest}})
	if err != nil {
		return "", err
	}
	for _, file := range []struct {
		name string
		data []byte
	}{{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)}, {"index.json", index}} {
		if a.err == nil {
			a.err = addFile(a.w, file.name, 0o644, file.data)
		}
	}
	if a.err != nil {
		return "", a.err
	}
	if err := a.w.Close(); err != nil {
		return "", err
	}
	if err := f.Chmod(0o644); err != nil {
		return "", err
	}
	if err := f.Close(); err != nil {
		return "", err
	}
	return manifest.Digest, os.Rename(f.Name(), path)
}
