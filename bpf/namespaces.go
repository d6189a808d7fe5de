// SPDX-License-Identifier: Apache-2.0

package bpf

import "net/netip"

// SetAddresses says which addresses the pod has from now on.
func (p *Pod) SetAddresses(addrs []netip.Addr) error { return errNotYet }
