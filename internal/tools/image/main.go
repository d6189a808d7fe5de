// SPDX-License-Identifier: Apache-2.0

// Command image packs the static binaries into OCI archives, without a container engine. Same binaries, same bytes:
// nothing of the machine or the time goes in.
//
// Usage: go run ./internal/tools/image -platform linux/amd64 -bin build/bin -out build/image
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// image is one archive: files of the binaries folder, put into /usr/local/bin; the first is the entrypoint.
type image struct {
	name  string
	files []string
}

var images = []image{
	{"sluice-agent", []string{"sluice-installer", "sluice-cni"}},
	{"ztunnel", []string{"ztunnel"}},
}

func main() {
	platform := flag.String("platform", "linux/amd64", "os/architecture written into the image")
	bin := flag.String("bin", "build/bin", "folder of the static binaries")
	out := flag.String("out", "build/image", "folder for NAME.oci.tar")
	flag.Parse()
	if err := run(*platform, *bin, *out); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(platform, bin, out string) error {
	goos, arch, ok := strings.Cut(platform, "/")
	if !ok {
		return fmt.Errorf("platform %q: want os/architecture", platform)
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for _, img := range images {
		layer, err := layerOf(bin, img.files)
		if err != nil {
			return fmt.Errorf("%s: %w", img.name, err)
		}
		path := filepath.Join(out, img.name+".oci.tar")
		digest, err := writeArchive(path, img, goos, arch, layer)
		if err != nil {
			return fmt.Errorf("%s: %w", img.name, err)
		}
		fmt.Printf("%s %s\n", path, digest)
	}
	return nil
}
