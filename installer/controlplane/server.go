// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	securityv1alpha1 "istio.io/api/security/v1alpha1"
)

// maxRequestBytes bounds one request: about a hundred bytes for each resource that a client holds, and what ztunnels admit
// the other way.
const maxRequestBytes = 200 << 20

// Config says what a Server serves, and where.
type Config struct {
	// Catalog is what is served. Nil means one of ManifestsDir, WorkloadsDir and LastGoodDir, which Run then keeps up to
	// date; a catalog that is given is its owner's to run.
	Catalog                                 Source
	ManifestsDir, WorkloadsDir, LastGoodDir string
	// Remote, if set, has the server serve ztunnels of many nodes; CADir, Socket and MayImpersonate are then not used.
	Remote *Remote
	// CADir holds the root key and certificate. They are made if missing. Nodes of one mesh share it.
	CADir string
	// Socket is the path of the unix socket.
	Socket string
	// ClusterID, TrustDomain, RootNamespace and DNSDomain default to istiod's: Kubernetes, cluster.local, istio-system,
	// cluster.local.
	ClusterID, TrustDomain, RootNamespace, DNSDomain string
	// NodeName is this node's, for log lines.
	NodeName string
	// MaxCertTTL caps what clients ask for. Zero means 24 hours.
	MaxCertTTL time.Duration
	// MayImpersonate decides whether this node's ztunnel may have a certificate for a SPIFFE URI: whether an enrolled pod
	// of this node has that identity. It is called concurrently and must not block for long.
	MayImpersonate func(identity string) bool
	// Counters, if set, count what the server does.
	Counters *Counters
	// Logger is slog.Default if nil.
	Logger *slog.Logger
}

// Server is the embedded control plane of one node.
type Server struct {
	cfg     Config
	catalog Source
	owned   bool // the catalog, so Run runs it
	mesh    mesh
	ads     *ads
	ca      *ca
	log     *slog.Logger
	ready   chan struct{}
	notes   map[string]bool // warnings of translation that were logged
}

// New opens the root key and reads the folders. Nothing listens before [Server.Run].
func New(cfg Config) (*Server, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("control plane: %w", err)
	}
	s := &Server{
		cfg: cfg, catalog: cfg.Catalog, log: cfg.Logger, ready: make(chan struct{}), notes: map[string]bool{},
		mesh: mesh{clusterID: cfg.ClusterID, trustDomain: cfg.TrustDomain, rootNamespace: cfg.RootNamespace, dnsDomain: cfg.DNSDomain},
	}
	if s.catalog == nil {
		c, err := NewCatalog(CatalogConfig{ManifestsDir: cfg.ManifestsDir, WorkloadsDir: cfg.WorkloadsDir, LastGoodDir: cfg.LastGoodDir, Logger: cfg.Logger})
		if err != nil {
			return nil, fmt.Errorf("control plane: %w", err)
		}
		s.catalog, s.owned = c, true
	}
	key, may, err := cfg.authority()
	if err != nil {
		return nil, fmt.Errorf("control plane: %w", err)
	}
	s.ca = &ca{root: key, trustDomain: cfg.TrustDomain, maxTTL: cfg.MaxCertTTL, mayImpersonate: may, counters: cfg.Counters, log: s.log}
	s.ads = newADS(cfg.Counters, s.log)
	if err := s.publish(); err != nil {
		return nil, fmt.Errorf("control plane: %w", err)
	}
	return s, nil
}

func (c *Config) complete() error {
	for _, d := range []struct {
		value    *string
		fallback string
	}{
		{&c.ClusterID, defaultClusterID}, {&c.TrustDomain, defaultTrustDomain},
		{&c.RootNamespace, defaultRootNamespace}, {&c.DNSDomain, defaultDNSDomain},
	} {
		if *d.value == "" {
			*d.value = d.fallback
		}
	}
	if c.MaxCertTTL == 0 {
		c.MaxCertTTL = defaultCertTTL
	}
	if c.Counters == nil {
		c.Counters = &Counters{}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	c.Logger = c.Logger.With("node", c.NodeName)
	if c.Remote != nil {
		return c.Remote.complete()
	}
	var errs []error
	if c.CADir == "" {
		errs = append(errs, errors.New("folder of the CA (CADir) is not set"))
	}
	if c.Socket == "" {
		errs = append(errs, errors.New("path of the socket (Socket) is not set"))
	}
	if c.MayImpersonate == nil {
		errs = append(errs, errors.New("who may be impersonated (MayImpersonate) is not set"))
	}
	return errors.Join(errs...)
}

// Catalog is what the server serves.
func (s *Server) Catalog() Source { return s.catalog }

// Ready is closed once the socket accepts connections.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run serves until ctx ends, and then returns nil; connections are cut, as clients keep their last state. Call it once.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l, options, err := s.listen()
	if err != nil {
		return fmt.Errorf("control plane: %w", err)
	}
	g := grpc.NewServer(append(options,
		// ztunnels ping every 30 s, also on quiet connections.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		// All of a big mesh comes in one message; the clients' limit is what counts. One who comes back names all that it
		// holds in one message too.
		grpc.MaxSendMsgSize(math.MaxInt32), grpc.MaxRecvMsgSize(maxRequestBytes),
	)...)
	discovery.RegisterAggregatedDiscoveryServiceServer(g, s.ads)
	securityv1alpha1.RegisterIstioCertificateServiceServer(g, s.ca)

	done := make(chan error, 3)
	go func() { done <- g.Serve(l) }()
	go func() { done <- s.follow(ctx) }()
	running := 2
	if s.owned {
		running++
		go func() { done <- s.catalog.Run(ctx) }()
	}
	close(s.ready)
	s.log.Info("control plane serves", "address", l.Addr().String(), "cluster", s.mesh.clusterID, "trust_domain", s.mesh.trustDomain)

	var failed error
	select {
	case <-ctx.Done():
	case failed = <-done:
		running--
	}
	cancel()
	g.Stop()
	for range running {
		<-done
	}
	if failed != nil && !errors.Is(failed, context.Canceled) {
		return fmt.Errorf("control plane: %w", failed)
	}
	return nil
}

// follow publishes what the catalog comes to hold.
func (s *Server) follow(ctx context.Context) error {
	changes, cancel := s.catalog.Subscribe()
	defer cancel()
	for {
		if err := s.publish(); err != nil {
			return err
		}
		select {
		case <-changes:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// publish translates the present snapshot and hands it to all streams.
func (s *Server) publish() error {
	snap := s.catalog.Snapshot()
	t := s.mesh.translate(snap)
	s.report(t.warnings)
	generation := uint64(1)
	if before, _ := s.ads.get(); before != nil {
		generation = before.generation + 1
	}
	r, err := newResources(generation, t)
	if err != nil {
		return err
	}
	s.ads.set(r)
	return nil
}

// report logs each warning once as long as it lasts.
func (s *Server) report(warnings []*FileError) {
	now := map[string]bool{}
	for _, w := range warnings {
		now[w.Error()] = true
		if !s.notes[w.Error()] {
			s.log.Warn("manifest is not carried out as written", "file", w.Origin.String(), "warning", w.Err)
		}
	}
	s.notes = now
}
