// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// AttachMode says how programs meet the packets of a device. dispatch is a link of the namespace in all modes.
type AttachMode string

const (
	// AttachAuto is tcx where the kernel has it, else clsact. A node's own mode is never this.
	AttachAuto AttachMode = "auto"
	// AttachTCX uses links, which the pod cannot detach. Needs Linux 6.6.
	AttachTCX AttachMode = "tcx"
	// AttachClsact uses tc filters. A pod with CAP_NET_ADMIN can remove those in its namespace, which Check tells; what
	// it then sends in clear to the mesh is stopped by guard.
	AttachClsact AttachMode = "clsact"
)

// AttachModeEnv is the environment variable that says what [AttachAuto] is, instead of the kernel.
const AttachModeEnv = "SLUICE_ATTACH_MODE"

// ParseAttachMode reads a mode by its name; an empty one is AttachAuto.
func ParseAttachMode(name string) (AttachMode, error) {
	switch m := AttachMode(name); m {
	case "":
		return AttachAuto, nil
	case AttachAuto, AttachTCX, AttachClsact:
		return m, nil
	}
	return "", fmt.Errorf("attach mode %q: must be %s, %s or %s", name, AttachAuto, AttachTCX, AttachClsact)
}

// resolve turns AttachAuto into what the environment wants or the kernel has.
func (m AttachMode) resolve() (AttachMode, error) {
	m, err := ParseAttachMode(string(m))
	if err != nil || m != AttachAuto {
		return m, err
	}
	m, err = ParseAttachMode(os.Getenv(AttachModeEnv))
	if err != nil {
		return "", fmt.Errorf("%s: %w", AttachModeEnv, err)
	}
	if m != AttachAuto {
		return m, nil
	}
	return probeAttachMode()
}

// probeAttachMode attaches a program that does nothing to the calling thread's lo, and detaches it.
var probeAttachMode = sync.OnceValues(func() (AttachMode, error) {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:         "sluice_probe",
		Type:         ebpf.SchedCLS,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1 /* TC_ACT_UNSPEC */), asm.Return()},
		License:      "Dual BSD/GPL",
	})
	if err != nil {
		return "", fmt.Errorf("probe for tcx: %w", err)
	}
	defer func() { _ = prog.Close() }()
	l, err := link.AttachTCX(link.TCXOptions{Interface: loopbackIfindex, Program: prog, Attach: ebpf.AttachTCXEgress})
	if errors.Is(err, ebpf.ErrNotSupported) {
		return AttachClsact, nil
	}
	if err != nil {
		return "", fmt.Errorf("probe for tcx: %w", err)
	}
	return AttachTCX, l.Close()
})
