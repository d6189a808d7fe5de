// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"crypto/tls"
	"fmt"

	"github.com/sluice-mesh/sluice/ztunnel/discovery"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// self returns the pod's own workload, and waits a little for one that is not known yet: the first packets of a new pod
// may be faster than the control plane.
func (p *podProxy) self(ctx context.Context) (*discovery.Workload, error) {
	if w := p.lookUpSelf(); w != nil {
		return w, nil
	}
	ctx, cancel := context.WithTimeout(ctx, selfTimeout)
	defer cancel()
	w, err := p.awaitSelf(ctx)
	if err != nil {
		return nil, refuse(VerdictUnknownWorkload, "workload %s (service account %s) is not known over xDS after %s", p.info, p.info.ServiceAccount, selfTimeout).
			flagged(telemetry.FlagIdentity)
	}
	return w, nil
}

// awaitSelf waits until ctx ends.
func (p *podProxy) awaitSelf(ctx context.Context) (*discovery.Workload, error) {
	changes := p.Store.Subscribe()
	defer changes.Close()
	for {
		// After subscribing, so that a change in between is not missed.
		if w := p.lookUpSelf(); w != nil {
			return w, nil
		}
		select {
		case <-changes.C():
			changes.Take()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// lookUpSelf finds the workload that is the pod which the agent named, service account included: the agent's word binds
// the namespace to the identity, the control plane's word alone does not.
func (p *podProxy) lookUpSelf() *discovery.Workload {
	if w := p.Store.WorkloadByUID(fmt.Sprintf("%s//Pod/%s/%s", p.ClusterID, p.info.Namespace, p.info.Name)); w != nil {
		return p.ifSelf(w)
	}
	// The control plane may know the cluster by another name.
	var found *discovery.Workload
	for _, w := range p.Store.WorkloadsByName(p.info.Namespace, p.info.Name) {
		if w = p.ifSelf(w); w != nil && found != nil {
			return nil // which of the two cannot be known
		} else if w != nil {
			found = w
		}
	}
	return found
}

func (p *podProxy) ifSelf(w *discovery.Workload) *discovery.Workload {
	if w.Network == p.Network && (p.info.ServiceAccount == "" || w.ServiceAccount == p.info.ServiceAccount) {
		return w
	}
	return nil
}

// tlsConfig chooses the certificate by whose listener accepted, never by the name the client asks for.
func (p *podProxy) tlsConfig(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	self, err := p.self(hello.Context())
	if err != nil {
		return nil, err
	}
	config := p.ServerTLS(self.Identity())
	if config.GetConfigForClient == nil {
		return config, nil
	}
	return config.GetConfigForClient(hello)
}
