// SPDX-License-Identifier: Apache-2.0

package bpf

import "fmt"

// Tag is what capture knows of a socket. Only [TagProxy] is ever written from here; the others are capture's own notes
// on the flow it saw last.
type Tag uint32

const (
	TagNone  = Tag(captureTagTAG_NONE)  // never decided
	TagProxy = Tag(captureTagTAG_PROXY) // ztunnel's socket: never captured, nor are the children of such a listener
	TagLocal = Tag(captureTagTAG_LOCAL) // the flow goes to ztunnel
	TagPass  = Tag(captureTagTAG_PASS)  // the flow leaves the pod as it is
)

func (t Tag) String() string {
	switch t {
	case TagNone:
		return "none"
	case TagProxy:
		return "proxy"
	case TagLocal:
		return "local"
	case TagPass:
		return "pass"
	default:
		return fmt.Sprintf("tag-%d", uint32(t))
	}
}
