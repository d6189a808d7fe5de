// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sluice-mesh/sluice/ztunnel/identity"
)

// Counters is told what the client does, for metrics. Methods may be called from any goroutine and must not block.
type Counters interface {
	// XDSMessage: a response of a type came, with so many bytes of resources.
	XDSMessage(typeURL string, bytes int)
	// XDSTermination: a stream ended; reason is one of the Reason constants.
	XDSTermination(reason string)
}

// Why a stream ended.
const (
	ReasonConnectionError = "ConnectionError" // it never came to be
	ReasonError           = "Error"           // the control plane refused it
	ReasonReconnect       = "Reconnect"       // it was cut, as control planes do now and then
	ReasonComplete        = "Complete"        // the control plane ended it in order
)

// Config is what a Client needs.
type Config struct {
	ControlPlane identity.ControlPlane
	Node         Node
	Store        *Store
	Counters     Counters     // may be nil
	Logger       *slog.Logger // may be nil
	// BackoffMin is the wait before connecting again after a stream that worked; 0 means 10 ms. It doubles up to BackoffMax
	// with each attempt that does not work; 0 means 15 s, or 1 s for a control plane on this machine.
	BackoffMin, BackoffMax time.Duration
}

// Client follows a control plane and keeps a Store up to date. While it is cut off the store keeps its last state:
// nothing in it expires.
type Client struct {
	cfg  Config
	node *corev3.Node
	// held is the version of every resource in the store, by type and name. Only Run touches it.
	held    map[string]map[string]string
	missing missingLog // only Run touches it
	synced  chan struct{}
	once    sync.Once
}

// typeURLs in the order they are asked for, and answered: policies first. A workload that came before the policies it
// names would be unprotected until they do.
var typeURLs = []string{AuthorizationType, AddressType}

// NewClient returns a client that does nothing before Run.
func NewClient(cfg Config) (*Client, error) {
	node, err := cfg.Node.proto()
	if err != nil {
		return nil, err
	}
	if err := cfg.ControlPlane.Validate(); err != nil {
		return nil, err
	}
	cfg.BackoffMin = cmp.Or(cfg.BackoffMin, 10*time.Millisecond)
	if cfg.BackoffMax == 0 {
		cfg.BackoffMax = 15 * time.Second
		if cfg.ControlPlane.Local() {
			cfg.BackoffMax = time.Second
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Counters == nil {
		cfg.Counters = noCounters{}
	}
	held := map[string]map[string]string{}
	for _, url := range typeURLs {
		held[url] = map[string]string{}
	}
	missing := missingLog{node: cfg.Node.NodeName, log: cfg.Logger}
	return &Client{cfg: cfg, node: node, held: held, missing: missing, synced: make(chan struct{})}, nil
}

// Synced is closed once the first response of each type is in the store and answered. It stays closed.
func (c *Client) Synced() <-chan struct{} { return c.synced }

// Run follows the control plane until ctx ends, whose error it returns. It may be called once.
func (c *Client) Run(ctx context.Context) error {
	for failures := 0; ; {
		answered, err := c.stream(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		reason := terminationReason(err, answered)
		c.cfg.Counters.XDSTermination(reason)
		if answered && (reason == ReasonReconnect || reason == ReasonComplete) {
			failures = 0
		}
		wait := c.backoff(failures)
		failures++
		c.cfg.Logger.Log(ctx, level(reason), "xds stream ended", "reason", reason, "retry_in", wait, "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// level: control planes cut streams in the ordinary course of things.
func level(reason string) slog.Level {
	if reason == ReasonReconnect || reason == ReasonComplete {
		return slog.LevelInfo
	}
	return slog.LevelWarn
}

func (c *Client) backoff(failures int) time.Duration {
	wait := c.cfg.BackoffMin
	for i := 0; i < failures && wait < c.cfg.BackoffMax; i++ {
		wait *= 2
	}
	return time.Duration(float64(min(wait, c.cfg.BackoffMax)) * (0.8 + 0.4*rand.Float64()))
}

// terminationReason: answered tells whether the stream delivered anything before it ended with err.
func terminationReason(err error, answered bool) string {
	if errors.Is(err, io.EOF) {
		return ReasonComplete
	}
	switch status.Code(err) {
	case codes.Unavailable:
		if answered {
			return ReasonReconnect
		}
		return ReasonConnectionError
	case codes.Canceled:
		return ReasonReconnect
	case codes.Unknown:
		if _, ok := status.FromError(err); ok {
			return ReasonReconnect
		}
	}
	return ReasonError
}

// stream follows one stream to its end. answered tells whether any response came.
func (c *Client) stream(ctx context.Context) (answered bool, err error) {
	conn, err := c.cfg.ControlPlane.Dial()
	if err != nil {
		return false, err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return false, err
	}
	if err := c.subscribe(s); err != nil {
		return false, err
	}
	waiting := slices.Clone(typeURLs)
	for {
		r, err := s.Recv()
		if err != nil {
			return answered, err
		}
		answered = true
		if err := c.receive(s, r); err != nil {
			return answered, err
		}
		waiting = slices.DeleteFunc(waiting, func(url string) bool { return url == r.GetTypeUrl() })
		if len(waiting) == 0 {
			c.once.Do(func() { close(c.synced) })
			c.missing.report(c.cfg.Store)
		}
	}
}

type adsStream = grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]

// subscribe asks for everything of each type, naming what is held so that only differences need to come. A list of
// names would limit the answer, and "*" is for subscriptions of another kind: ambient section 5.2.
func (c *Client) subscribe(s adsStream) error {
	for _, url := range typeURLs {
		request := &discoveryv3.DeltaDiscoveryRequest{Node: c.node, TypeUrl: url, InitialResourceVersions: c.held[url]}
		if err := send(s, request); err != nil {
			return err
		}
	}
	return nil
}

// receive applies a response and acknowledges it, with what was wrong in it if anything.
func (c *Client) receive(s adsStream, r *discoveryv3.DeltaDiscoveryResponse) error {
	size := 0
	for _, resource := range r.GetResources() {
		size += len(resource.GetResource().GetValue())
	}
	c.cfg.Counters.XDSMessage(r.GetTypeUrl(), size)
	good, bad := parseResponse(r)
	c.missing.note(c.cfg.Store.Apply(good.update))
	c.hold(r.GetTypeUrl(), good)
	answer := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}
	if bad != nil {
		c.cfg.Logger.Error("xds resources refused, the others of the response apply", "type", r.GetTypeUrl(), "error", bad)
		answer.ErrorDetail = &rpcstatus.Status{Message: bad.Error()}
	}
	c.cfg.Logger.Debug("xds response", "type", r.GetTypeUrl(), "resources", len(r.GetResources()), "removed", len(good.removed), "bytes", size)
	return send(s, answer)
}

// hold records versions. A bad resource keeps the version of what it should have replaced, which is still in the store.
func (c *Client) hold(url string, good accepted) {
	held := c.held[url]
	for name, version := range good.versions {
		held[name] = version
	}
	for _, name := range good.removed {
		delete(held, name)
	}
}

// send returns what ended the stream if that is why nothing can be sent.
func send(s adsStream, request *discoveryv3.DeltaDiscoveryRequest) error {
	err := s.Send(request)
	if errors.Is(err, io.EOF) {
		_, err = s.Recv()
	}
	return err
}

type noCounters struct{}

func (noCounters) XDSMessage(string, int) {}
func (noCounters) XDSTermination(string)  {}
