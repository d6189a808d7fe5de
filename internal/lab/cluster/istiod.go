// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/sluice-mesh/sluice/internal/lab/kube"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// IstioSystem is the namespace of StartIstiod's istiod.
const IstioSystem = "istio-system"

// meshConfig is istiod's; discoveryAddress is what it tells proxies that it injects, of which there are none.
const meshConfig = `
defaultConfig: {discoveryAddress: "` + APIAddress + `:15012"}
trustDomain: cluster.local
rootNamespace: ` + IstioSystem + `
`

// istiodService leads pods to a process that is not in a pod.
const istiodService = `
apiVersion: v1
kind: Service
metadata: {name: istiod}
spec:
  ports: [{name: https-dns, port: 15012}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: istiod-outside, labels: {kubernetes.io/service-name: istiod}}
addressType: IPv4
endpoints: [{addresses: [` + APIAddress + `], conditions: {ready: true}}]
ports: [{name: https-dns, port: 15012, protocol: TCP}]
`

// StartIstiod installs Istio's definitions and runs a real istiod in ambient mode, beside the rest of the control plane, until
// the cluster's end. It returns once istiod is ready, and pods reach it by istiod.istio-system.svc. Without its two files
// of build/k8s the test is skipped; with CI=true it fails.
func (c *Cluster) StartIstiod() {
	c.t.Helper()
	program := kube.Binary(c.t, "pilot-discovery")
	c.Kubectl(c.t, "apply", "--server-side", "--force-conflicts", "-f", kube.Built(c.t, "k8s/istio-crds.yaml"))
	c.Kubectl(c.t, "create", "namespace", IstioSystem)
	c.Apply(c.t, IstioSystem, istiodService)
	dir, mesh := c.path("istiod"), c.path("istiod", "mesh")
	c.must(os.Mkdir(dir, 0o755), os.WriteFile(mesh, []byte(meshConfig), 0o600))
	c.istiod = &kube.Process{Name: "istiod", Log: c.path("logs", "istiod.log"), Argv: append(c.outside(),
		"env", "--chdir="+dir, // it writes its certificates below
		"POD_NAME=istiod-0", "POD_NAMESPACE="+IstioSystem, "SERVICE_ACCOUNT=istiod", "CLUSTER_ID=Kubernetes", "REVISION=default",
		"PILOT_ENABLE_AMBIENT=true", "CA_TRUSTED_NODE_ACCOUNTS="+IstioSystem+"/ztunnel", "PILOT_CERT_PROVIDER=istiod",
		"INJECTION_WEBHOOK_CONFIG_NAME=", "VALIDATION_WEBHOOK_CONFIG_NAME=",
		program, "discovery", "--kubeconfig="+c.kubeconfig, "--meshConfig="+mesh, "--domain=cluster.local", "--ctrlz_port=0",
		"--secureGRPCAddr="+APIAddress+":15012", "--grpcAddr=127.0.0.1:15010", "--httpAddr=127.0.0.1:15080",
		"--httpsAddr=127.0.0.1:15017", "--monitoringAddr=127.0.0.1:15014")}
	c.t.Cleanup(func() { c.istiod.Stop(c.t) })
	c.RestartIstiod()
}

// KillIstiod has nobody answer in its place.
func (c *Cluster) KillIstiod() { c.t.Helper(); c.istiod.Kill(c.t) }

// RestartIstiod starts it again, with the root that it keeps in the cluster, and returns once it is ready.
func (c *Cluster) RestartIstiod() {
	c.t.Helper()
	c.istiod.Start(c.t)
	testutil.Eventually(c.t, startTimeout, func() error {
		if err := c.istiod.Ended(); err != nil {
			c.t.Fatalf("%v\n%s", err, c.istiod.Tail())
		}
		return c.getOutside("http://127.0.0.1:15080/ready")
	})
}

// getOutside asks a server that runs where the control plane does.
func (c *Cluster) getOutside(url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DialContext: c.dial, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s %q, %v", url, resp.Status, body, err)
	}
	return nil
}
