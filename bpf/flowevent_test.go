// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"testing"
	"unsafe"
)

func BenchmarkDecodeFlow(b *testing.B) {
	raw := make([]byte, unsafe.Sizeof(flowsFlowEvent{}))
	var e FlowEvent
	b.ReportAllocs()
	for b.Loop() {
		if err := e.decode(raw); err != nil {
			b.Fatal(err)
		}
	}
}
