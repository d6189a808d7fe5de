// SPDX-License-Identifier: Apache-2.0

package controlplane

import "sync/atomic"

// Counters count what servers do that were given them, one after another too. The zero value is ready. Safe for
// concurrent use.
type Counters struct {
	// Streams are the xDS streams that are open now.
	Streams atomic.Int64
	// Rejected are the responses that clients did not take in full.
	Rejected                                atomic.Uint64
	CertificatesIssued, CertificatesRefused atomic.Uint64
	// CallersRefused did not show who they are, or are nobody who may ask.
	CallersRefused atomic.Uint64
}
