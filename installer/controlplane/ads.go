// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ads serves delta xDS: wildcard subscriptions to addresses and authorizations.
type ads struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	counters *Counters
	log      *slog.Logger

	mu      sync.Mutex // guards what follows
	current *resources
	// changed is closed and replaced when current is.
	changed chan struct{}
	streams int
}

func newADS(counters *Counters, log *slog.Logger) *ads {
	return &ads{counters: counters, log: log, changed: make(chan struct{})}
}

// set makes r what every stream is brought to.
func (a *ads) set(r *resources) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.current = r
	close(a.changed)
	a.changed = make(chan struct{})
}

// get returns the present resources and what is closed when they are not present anymore.
func (a *ads) get() (*resources, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.current, a.changed
}

func (a *ads) nextStream() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.streams++
	return a.streams
}

// DeltaAggregatedResources serves one client until it leaves.
func (a *ads) DeltaAggregatedResources(g discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	s := &stream{ads: a, grpc: g, log: a.log.With("stream", a.nextStream()), subs: map[string]*subscription{}}
	a.counters.Streams.Add(1)
	defer a.counters.Streams.Add(-1)
	requests := make(chan *discovery.DeltaDiscoveryRequest)
	failed := make(chan error, 1)
	go s.receive(requests, failed) // ends with the stream's context, which ends when this function returns
	err := s.serve(requests, failed)
	if errors.Is(err, io.EOF) || errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled {
		s.log.Info("xds client left")
		return nil
	}
	s.log.Warn("xds stream ended", "error", err)
	return err
}

// stream is one client.
type stream struct {
	ads  *ads
	grpc discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	log  *slog.Logger
	subs map[string]*subscription
	sent uint64 // responses, for nonces
}

// subscription is one type of one client.
type subscription struct {
	// held is what the client was sent, or said it holds. A NACK does not change it: the client keeps what was good, and
	// what was not is sent again when it changes.
	held  map[string]string
	nonce string
}

// note records what the client is sent.
func (sub *subscription) note(d delta) {
	for _, res := range d.changed {
		sub.held[res.Name] = res.Version
	}
	for _, name := range d.removed {
		delete(sub.held, name)
	}
}

func (s *stream) receive(requests chan<- *discovery.DeltaDiscoveryRequest, failed chan<- error) {
	for {
		req, err := s.grpc.Recv()
		if err != nil {
			failed <- err
			return
		}
		select {
		case requests <- req:
		case <-s.grpc.Context().Done():
			return
		}
	}
}

func (s *stream) serve(requests <-chan *discovery.DeltaDiscoveryRequest, failed <-chan error) error {
	for {
		now, changed := s.ads.get()
		if err := s.push(now); err != nil {
			return err
		}
		select {
		case req := <-requests:
			if err := s.handle(req, now); err != nil {
				return err
			}
		case <-changed:
		case err := <-failed:
			return err
		}
	}
}

// push brings every subscription to the given state, and makes before it breaks: policies come before the workloads
// that name them, and go after the workloads that named them. In between a pod is never without both.
func (s *stream) push(now *resources) error {
	for _, step := range []struct {
		typeURL string
		delta   delta
	}{
		{typeAuthorization, delta{changed: s.changed(typeAuthorization, now)}},
		{typeAddress, delta{s.changed(typeAddress, now), s.removed(typeAddress, now)}},
		{typeAuthorization, delta{removed: s.removed(typeAuthorization, now)}},
	} {
		if step.delta.empty() {
			continue
		}
		if err := s.send(step.typeURL, now, step.delta); err != nil {
			return err
		}
	}
	return nil
}

// changed are the resources of a type that the client, if it asked for them, does not hold as they are now.
func (s *stream) changed(typeURL string, now *resources) []*discovery.Resource {
	if sub := s.subs[typeURL]; sub != nil {
		return now.changed(typeURL, sub.held)
	}
	return nil
}

// removed are the resources of a type that the client is to drop. Those of policies wait until it asked for addresses:
// the workloads that it may hold from an earlier stream still name them.
func (s *stream) removed(typeURL string, now *resources) []string {
	sub := s.subs[typeURL]
	if sub == nil || s.subs[typeAddress] == nil {
		return nil
	}
	return now.removed(typeURL, sub.held)
}

// send tells the client of d and nothing else: what it holds besides stays as it is.
func (s *stream) send(typeURL string, now *resources, d delta) error {
	s.sent++
	sub := s.subs[typeURL]
	sub.nonce = fmt.Sprintf("%d", s.sent)
	sub.note(d)
	s.log.Debug("xds push", "type", typeURL, "nonce", sub.nonce, "changed", len(d.changed), "removed", len(d.removed))
	return s.grpc.Send(&discovery.DeltaDiscoveryResponse{
		SystemVersionInfo: fmt.Sprintf("%d", now.generation),
		TypeUrl:           typeURL,
		Nonce:             sub.nonce,
		Resources:         d.changed,
		RemovedResources:  d.removed,
	})
}

// handle takes one request: a subscription, an ACK or a NACK.
func (s *stream) handle(req *discovery.DeltaDiscoveryRequest, now *resources) error {
	sub := s.subs[req.TypeUrl]
	if sub == nil {
		return s.subscribe(req, now)
	}
	if len(req.ResourceNamesSubscribe)+len(req.ResourceNamesUnsubscribe) > 0 {
		return status.Error(codes.Unimplemented, "subscriptions by name are not supported; subscribe to everything with an empty list")
	}
	switch {
	case req.ErrorDetail != nil:
		s.ads.counters.Rejected.Add(1)
		s.log.Error("ztunnel refused resources; what it had of them stays in force", "type", req.TypeUrl, "nonce", req.ResponseNonce,
			"stale", req.ResponseNonce != sub.nonce, "reason", req.ErrorDetail.GetMessage())
	case req.ResponseNonce == sub.nonce:
		s.log.Debug("xds ack", "type", req.TypeUrl, "nonce", req.ResponseNonce)
	}
	return nil
}

// subscribe answers the first request for a type, even if there is nothing to say: a client counts as synced once it
// has had an answer.
func (s *stream) subscribe(req *discovery.DeltaDiscoveryRequest, now *resources) error {
	if now.byType[req.TypeUrl] == nil {
		return status.Errorf(codes.InvalidArgument, "type %q is not served here (served: %s)", req.TypeUrl, strings.Join(served, ", "))
	}
	if names := req.ResourceNamesSubscribe; len(names) > 0 && (len(names) > 1 || names[0] != "*") || len(req.ResourceNamesUnsubscribe) > 0 {
		return status.Error(codes.Unimplemented, "subscriptions by name are not supported; subscribe to everything with an empty list")
	}
	held := req.InitialResourceVersions
	if held == nil {
		held = map[string]string{}
	}
	s.subs[req.TypeUrl] = &subscription{held: held}
	d := delta{s.changed(req.TypeUrl, now), s.removed(req.TypeUrl, now)}
	s.log.Info("xds client subscribed", "type", req.TypeUrl, "node", req.GetNode().GetId(), "held", len(held),
		"changed", len(d.changed), "removed", len(d.removed))
	return s.send(req.TypeUrl, now, d)
}
