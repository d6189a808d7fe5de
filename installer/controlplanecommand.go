// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/sluice-mesh/sluice/installer/kube"
)

// controlplaneConfig is what the control plane was told by flags.
type controlplaneConfig struct {
	Listen, MetricsAddress                string
	Kubeconfig, Namespace, Identity       string
	ClusterID, TrustDomain, RootNamespace string
	Names, Trusted                        []string
	LogLevel                              slog.Level
}

func (c *controlplaneConfig) declare(fs *flagSet) {
	c.Names, c.Trusted = nil, []string{"sluice-system/ztunnel"}
	fs.StringVar(&c.Listen, "listen", ":15012", "host:port of xDS and CA, served with TLS")
	fs.StringVar(&c.MetricsAddress, "metrics-address", ":15014", "host:port for /metrics, /healthz/ready and /healthz/live; empty means none")
	fs.StringVar(&c.Kubeconfig, "kubeconfig", "", "how to reach the Kubernetes API; default the pod's own service account")
	fs.StringVar(&c.Namespace, "namespace", os.Getenv("POD_NAMESPACE"), "namespace of the Lease, the root's Secret and the ConfigMap with its certificate; default $POD_NAMESPACE")
	fs.StringVar(&c.Identity, "identity", os.Getenv("POD_NAME"), "name of this process in the Lease, different from all others; default $POD_NAME, else the host name")
	fs.StringVar(&c.ClusterID, "cluster-id", "Kubernetes", "cluster in the uids of workloads")
	fs.StringVar(&c.TrustDomain, "trust-domain", "cluster.local", "trust domain of the CA")
	fs.StringVar(&c.RootNamespace, "root-namespace", "istio-system", "namespace whose policies without a selector count for the whole mesh")
	list := func(to *[]string) func(string) error {
		return func(v string) error {
			*to = strings.FieldsFunc(v, func(r rune) bool { return r == ',' || r == ' ' })
			return nil
		}
	}
	fs.Func("dns-names", "comma-separated `names` of the serving certificate (default sluice-controlplane.NAMESPACE, and that with .svc and .svc.cluster.local)", list(&c.Names))
	fs.Func("trusted-accounts", "comma-separated service accounts, `NAMESPACE/NAME`, of node proxies (default sluice-system/ztunnel)", list(&c.Trusted))
	fs.TextVar(&c.LogLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
}

// complete fills in what depends on other flags and returns all mistakes.
func (c *controlplaneConfig) complete() error {
	if c.Identity == "" {
		c.Identity, _ = os.Hostname()
	}
	if len(c.Names) == 0 {
		short := "sluice-controlplane." + c.Namespace
		c.Names = []string{short + ".svc", short + ".svc.cluster.local", short}
	}
	var errs []error
	if c.Namespace == "" {
		errs = append(errs, errors.New("--namespace: is required outside of a pod"))
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		errs = append(errs, fmt.Errorf("--listen: %w", err))
	}
	if c.MetricsAddress != "" {
		if _, _, err := net.SplitHostPort(c.MetricsAddress); err != nil {
			errs = append(errs, fmt.Errorf("--metrics-address: %w", err))
		}
	}
	for _, a := range c.Trusted {
		if ns, name, ok := strings.Cut(a, "/"); !ok || ns == "" || name == "" {
			errs = append(errs, fmt.Errorf("--trusted-accounts: %q is not NAMESPACE/NAME", a))
		}
	}
	return errors.Join(errs...)
}

func controlplaneCommand(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var c controlplaneConfig
	fs := newFlagSet("controlplane", stdout)
	c.declare(fs)
	if err := fs.parse(args, c.complete); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: c.LogLevel})).With("identity", c.Identity)
	rc, err := kube.Connect(c.Kubeconfig, "sluice-installer controlplane")
	if err != nil {
		return err
	}
	reach := kube.NewReach(log)
	rc = reach.Follow(rc)
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return err
	}
	reviews, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return err
	}
	patient := kube.Patient(rc)
	watches, err := kubernetes.NewForConfig(patient)
	if err != nil {
		return err
	}
	dyn, err := dynamic.NewForConfig(patient)
	if err != nil {
		return err
	}
	cluster, err := kube.NewCluster(watches, dyn, log)
	if err != nil {
		return err
	}
	p := &controlPlane{cfg: &c, client: client, reviews: reviews, cluster: cluster, reach: reach, log: log}
	return p.run(ctx)
}
