// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
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
	mediaLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
}

// archive writes an OCI image layout as a tar: blobs by digest, then the index that names the image.
//
//	index.json ─► image index ─► manifest per architecture ─► config, layer
type archive struct {
	w   *tar.Writer
	err error
}

func (a *archive) file(name string, data []byte) {
	if a.err == nil {
		a.err = addFile(a.w, name, 0o644, data)
	}
}

func (a *archive) blob(mediaType string, data []byte) descriptor {
	sum := digestOf(data)
	a.file("blobs/"+strings.Replace(sum, ":", "/", 1), data)
	return descriptor{MediaType: mediaType, Digest: sum, Size: len(data)}
}

func (a *archive) json(mediaType string, v any) descriptor {
	data, err := json.Marshal(v)
	if err != nil && a.err == nil {
		a.err = err
	}
	return a.blob(mediaType, data)
}

func digestOf(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

// writeArchive writes the image beside its final name and renames it. It returns the digest of the image's index.
func writeArchive(path string, img image, o options, bin string) (digest string, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".image-")
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	a := &archive{w: tar.NewWriter(f)}
	top, err := a.image(img, o, bin)
	if err != nil {
		return "", err
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
	return top.Digest, os.Rename(f.Name(), path)
}

// image adds all blobs and the index.
func (a *archive) image(img image, o options, bin string) (descriptor, error) {
	var manifests []descriptor
	for _, arch := range o.archs {
		m, err := a.manifest(img, o, filepath.Join(bin, "linux-"+arch), platform{"linux", arch})
		if err != nil {
			return descriptor{}, err
		}
		manifests = append(manifests, m)
	}
	top := a.json(mediaIndex, map[string]any{
		"schemaVersion": 2, "mediaType": mediaIndex, "manifests": manifests, "annotations": o.labels(img),
	})
	// containerd takes the full name from its own annotation, others take the second.
	top.Annotations = map[string]string{"io.containerd.image.name": o.ref(img), "org.opencontainers.image.ref.name": o.tag}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": mediaIndex, "manifests": []descriptor{top}})
	if err != nil {
		return descriptor{}, err
	}
	a.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	a.file("index.json", index)
	return top, a.err
}

// manifest adds the blobs of one architecture.
func (a *archive) manifest(img image, o options, bin string, p platform) (descriptor, error) {
	plain, packed, err := layerOf(bin, img.files)
	if err != nil {
		return descriptor{}, err
	}
	layer := a.blob(mediaLayer, packed)
	config := a.json(mediaConfig, map[string]any{
		"os": p.OS, "architecture": p.Architecture, "created": epoch,
		"config": map[string]any{
			"Entrypoint": []string{"/" + binDir + img.files[0]}, "Labels": o.labels(img),
			"Env": []string{"PATH=/" + strings.TrimSuffix(binDir, "/")},
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{digestOf(plain)}},
		"history": []map[string]string{{"created": epoch, "comment": strings.Join(img.files, ", ")}},
	})
	m := a.json(mediaManifest, map[string]any{
		"schemaVersion": 2, "mediaType": mediaManifest, "config": config, "layers": []descriptor{layer}, "annotations": o.labels(img),
	})
	m.Platform = &p
	return m, nil
}
