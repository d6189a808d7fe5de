// SPDX-License-Identifier: Apache-2.0

// Command image packs static binaries into OCI archives, without a container engine or a registry. An archive holds one
// image for several architectures. Same binaries, same version, same bytes: nothing of the machine or the time goes in.
//
// Usage: go run ./internal/tools/image -archs amd64,arm64 -version v1 -bin build/image -out build/image
//
// The binaries are those in BIN/linux-ARCH. Images are made FROM scratch: there is no shell, no user database, no
// certificate store and no file but the binaries.
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
	name, about string
	files       []string
}

var images = []image{
	{"sluice-agent", "node agent and CNI plugin of the Sluice mesh", []string{"sluice-installer", "sluice-cni"}},
	{"ztunnel", "node proxy of the Sluice mesh", []string{"ztunnel"}},
}

// options say what goes into the images besides the binaries.
type options struct {
	archs    []string
	registry string // what comes before the image's name
	tag      string
	version  string
	revision string // commit; empty: not known
}

func main() {
	archs := flag.String("archs", "amd64,arm64", "architectures, comma-separated")
	var o options
	flag.StringVar(&o.registry, "registry", "localhost", "registry and path before the image's name")
	flag.StringVar(&o.tag, "tag", "dev", "tag of the image's name")
	flag.StringVar(&o.version, "version", "dev", "version in the image's labels")
	flag.StringVar(&o.revision, "revision", "", "commit in the image's labels")
	bin := flag.String("bin", "build/image", "folder with a folder linux-ARCH of static binaries for each architecture")
	out := flag.String("out", "build/image", "folder for NAME.oci.tar")
	flag.Parse()
	o.archs = strings.Split(*archs, ",")
	if err := run(o, *bin, *out); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(o options, bin, out string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for _, img := range images {
		path := filepath.Join(out, img.name+".oci.tar")
		digest, err := writeArchive(path, img, o, bin)
		if err != nil {
			return fmt.Errorf("%s: %w", img.name, err)
		}
		fmt.Printf("%s %s@%s\n", path, o.ref(img), digest)
	}
	return nil
}

// ref is the image's full name, which manifests use.
func (o options) ref(img image) string { return o.registry + "/" + img.name + ":" + o.tag }

// labels are those that the OCI image specification names ("Pre-Defined Annotation Keys").
func (o options) labels(img image) map[string]string {
	const prefix = "org.opencontainers.image."
	l := map[string]string{
		prefix + "title": img.name, prefix + "description": img.about, prefix + "licenses": "Apache-2.0",
		prefix + "source": "https://github.com/sluice-mesh/sluice", prefix + "version": o.version,
	}
	if o.revision != "" {
		l[prefix+"revision"] = o.revision
	}
	return l
}
