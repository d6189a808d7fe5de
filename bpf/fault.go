// SPDX-License-Identifier: Apache-2.0

package bpf

// faults is called after each step of what changes a pod, for tests to stop there. Nothing else sets it.
var faults func(step string)

func fault(step string) {
	if faults != nil {
		faults(step)
	}
}
