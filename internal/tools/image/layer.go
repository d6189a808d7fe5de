// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
)

const (
	binDir = "usr/local/bin/"

	epoch = "1970-01-01T00:00:00Z"
)

// layerOf is a tar of the binaries below /usr/local/bin, owned by root, dated 1970, as it is and compressed.
func layerOf(bin string, files []string) (plain, packed []byte, err error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, dir := range []string{"usr/", "usr/local/", binDir} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return nil, nil, err
		}
	}
	for _, name := range files {
		data, err := os.ReadFile(filepath.Join(bin, name))
		if err != nil {
			return nil, nil, fmt.Errorf("%w (make image makes it)", err)
		}
		if err := addFile(w, binDir+name, 0o755, data); err != nil {
			return nil, nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, nil, err
	}
	packed, err = compress(buf.Bytes())
	return buf.Bytes(), packed, err
}

// compress writes no name and no time into the header. Another release of Go may compress in another way.
func compress(data []byte) ([]byte, error) {
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	if _, err := z.Write(data); err != nil {
		return nil, err
	}
	err := z.Close() // before the bytes are taken: it writes the last of them
	return buf.Bytes(), err
}

func addFile(w *tar.Writer, name string, mode int64, data []byte) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}
