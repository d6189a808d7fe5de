// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/installer/enroll"
	"github.com/sluice-mesh/sluice/installer/kube"
	"github.com/sluice-mesh/sluice/installer/running"
)

// Values of --source.
const (
	sourceFiles = "files"
	sourceAPI   = "api"
)

// sourceConfig says where the agent learns which pods are in the mesh.
type sourceConfig struct {
	Kind       string
	Kubeconfig string
	Rules      controlplane.Rules
	Untaint    bool
	DaemonSet  string
}

func (c *sourceConfig) declare(fs *flag.FlagSet) {
	fs.StringVar(&c.Kind, "source", sourceFiles, "what says which pods are in the mesh: files (the folder of --manifests) or api (Kubernetes, with --xds-address)")
	fs.StringVar(&c.Kubeconfig, "kubeconfig", "", "how to reach the Kubernetes API; default the pod's own service account")
	fs.Func("enablement-selectors", "with --source=api: YAML `list` of {podSelector, namespaceSelector}; a pod that one of them picks is in the mesh (default Istio's labels)", func(v string) (err error) {
		c.Rules.Selectors, err = controlplane.ParseSelectors(v)
		return err
	})
	fs.StringVar(&c.DaemonSet, "own-daemonset", "", "with --source=api: the agent's DaemonSet in --own-namespace; an agent that ends when it is deleted takes everything off the node")
	fs.BoolVar(&c.Untaint, "remove-taint", false, "with --source=api: take the taint "+kube.NotReadyTaint+" off this node once the agent is ready")
}

// complete returns all mistakes of the settings that have to do with the source.
func (c *sourceConfig) complete(a *agentConfig) error {
	switch c.Kind {
	case sourceFiles:
		if a.ManifestsDir == "" {
			return errors.New("--manifests: is required; without it nothing says which pods are in the mesh")
		}
		return absolute("manifests", a.ManifestsDir)
	case sourceAPI:
		c.Rules.ExcludedNamespaces = a.cni.excluded()
		var errs []error
		if a.ManifestsDir != "" {
			errs = append(errs, errors.New("--manifests: is not for --source=api"))
		}
		if a.XDSAddress == "" {
			errs = append(errs, errors.New("--xds-address: is required with --source=api, as the agent knows of no pods but its node's: istiod, or \"sluice-installer controlplane\""))
		}
		if c.DaemonSet != "" && a.cni.OwnNamespace == "" {
			errs = append(errs, errors.New("--own-daemonset: needs --own-namespace, or $POD_NAMESPACE"))
		}
		a.WorkloadsDir = "" // the annotation says it
		return errors.Join(errs...)
	}
	return fmt.Errorf("--source: %q is neither %q nor %q", c.Kind, sourceFiles, sourceAPI)
}

// apiSource is what the agent has to do with the Kubernetes API.
type apiSource struct {
	client   kubernetes.Interface
	node     *kube.Node
	reach    *kube.Reach
	reporter *kube.Reporter
	agent    *agent
}

// openSource returns once it is known which pods are wanted in the mesh.
func (a *agent) openSource(ctx context.Context) (err error) {
	if a.cfg.source.Kind == sourceAPI {
		return a.openAPI(ctx)
	}
	a.catalog, err = controlplane.NewCatalog(controlplane.CatalogConfig{
		ManifestsDir: a.cfg.ManifestsDir, WorkloadsDir: a.cfg.WorkloadsDir,
		LastGoodDir: filepath.Join(a.cfg.StateDir, "lastgood"), Logger: a.log,
	})
	return err
}

func (a *agent) openAPI(ctx context.Context) error {
	cfg, err := kube.Connect(a.cfg.source.Kubeconfig, "sluice-installer agent")
	if err != nil {
		return err
	}
	reach := kube.NewReach(a.log)
	client, err := kubernetes.NewForConfig(reach.Follow(cfg))
	if err != nil {
		return err
	}
	node, err := kube.NewNode(kube.NodeConfig{
		Client: client, NodeName: a.cfg.NodeName, Rules: a.cfg.source.Rules, StateDir: a.cfg.StateDir, Logger: a.log,
	})
	if err != nil {
		return err
	}
	s := &apiSource{client: client, node: node, reach: reach, agent: a}
	s.reporter = kube.NewReporter(kube.ReporterConfig{
		Client: client, Node: node, Logger: a.log, States: a.states,
	})
	a.catalog, a.api = node, s
	return node.Start(ctx)
}

func (a *agent) states() (all []kube.State) {
	for _, s := range a.enroller.States() {
		all = append(all, kube.State(s))
	}
	return all
}

// wire has the enroller ask the API about pods, and tell it.
func (s *apiSource) wire(cfg *enroll.Config) {
	cfg.Await, cfg.Changed, cfg.Refused = s.node.Await, s.reporter.Kick, s.reporter.Refused
	cfg.Find = s.find
}

// find looks for pods that started before the agent. The sockets are those that are there now: a runtime may come later.
func (s *apiSource) find(ctx context.Context, pods []*corev1.Pod) []running.Found {
	f := running.Finder{Sockets: s.agent.cfg.cni.sockets()}
	return f.Find(ctx, pods)
}

// report starts once the enroller knows the pods of before.
func (s *apiSource) report(ctx context.Context) error { return s.reporter.Run(ctx) }

func (s *apiSource) untaint(ctx context.Context) error {
	return kube.RemoveTaint(ctx, s.client, s.agent.cfg.NodeName, s.agent.log)
}
