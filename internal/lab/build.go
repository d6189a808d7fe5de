// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"os"
	"os/exec"
)

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
