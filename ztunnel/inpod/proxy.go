// SPDX-License-Identifier: Apache-2.0

package inpod

import (
	"context"
)

// ListenFunc returns the pod's listeners, or why there are none. held is what is accepted on now, nil at first; the
// result may be held itself. It must come back when ctx ends.
type ListenFunc func(ctx context.Context, p *Pod, held *Listeners) (*Listeners, error)

// StartFunc begins to serve a pod on its listeners, which become the Proxy's to close.
type StartFunc func(p *Pod, l *Listeners) Proxy

// Proxy is a pod being served.
type Proxy interface {
	// Replace accepts on l from now on, and closes the listeners of before.
	Replace(l *Listeners)
	// Drain stops accepting, waits for the connections to end, and cuts what is left when ctx ends.
	Drain(ctx context.Context)
	// Stop cuts every connection and returns when all are gone.
	Stop()
}

// Observer is told how the table changes. Methods must not block.
type Observer interface {
	// Counts are the pods served and those that wait for a retry.
	Counts(running, pending int)
	// Started and Stopped are called once per pod served.
	Started()
	Stopped()
}
