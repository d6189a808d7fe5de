// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// Binaries returns the folder that SLUICE_BUILD names, or compiles to a temporary one. The caller calls done when no lab
// uses the folder any more.
func Binaries() (dir string, done func() error, err error) {
	if dir := os.Getenv("SLUICE_BUILD"); dir != "" {
		return dir, func() error { return nil }, nil
	}
	if dir, err = os.MkdirTemp("", "sluice-build-"); err != nil {
		return "", nil, err
	}
	done = func() error { return os.RemoveAll(dir) }
	if err := Compile(dir); err != nil {
		return "", nil, errors.Join(err, done())
	}
	return dir, done, nil
}

// Compile makes what a lab needs as its Build folder, as "make build" does.
func Compile(dir string) error {
	const plugins = "github.com/containernetworking/plugins/plugins/"
	for out, packages := range map[string][]string{
		"bin/sluice-cni":       {"github.com/sluice-mesh/sluice/plugin"},
		"bin/ztunnel":          {"github.com/sluice-mesh/sluice/ztunnel"},
		"bin/sluice-installer": {"github.com/sluice-mesh/sluice/installer"},
		"cni/":                 {plugins + "main/bridge", plugins + "main/ptp", plugins + "ipam/host-local", plugins + "meta/portmap"},
	} {
		cmd := exec.Command("go", append([]string{"build", "-o", dir + "/" + out}, packages...)...) // a slash at the end: a folder
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go build: %w\n%s", err, text)
		}
	}
	return nil
}
