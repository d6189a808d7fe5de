// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/internal/workloadapi"
)

const (
	scopeNetwork = workloadapi.LoadBalancing_NETWORK
	scopeRegion  = workloadapi.LoadBalancing_REGION
	scopeZone    = workloadapi.LoadBalancing_ZONE
	scopeSubzone = workloadapi.LoadBalancing_SUBZONE
	scopeNode    = workloadapi.LoadBalancing_NODE
)

// namedPod has ports by name, one of them of a sidecar that is an init container, and one that an init container has which
// is over when the pod runs.
func (m *mesh) namedPod() *corev1.Pod {
	m.Helper()
	always := corev1.ContainerRestartPolicyAlways
	port := func(name string, number int32) []corev1.ContainerPort {
		return []corev1.ContainerPort{{Name: name, ContainerPort: number}}
	}
	p, err := m.client.CoreV1().Pods("shop").Create(m.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "named", Labels: map[string]string{"app": "named"}},
		Spec: corev1.PodSpec{NodeName: "n1", InitContainers: []corev1.Container{
			{Name: "side", Image: "side:1", RestartPolicy: &always, Ports: port("admin", 9901)},
			{Name: "once", Image: "once:1", Ports: port("gone", 9902)},
		}, Containers: []corev1.Container{{Name: "app", Image: "app:1", Ports: port("http", 8080)}}},
	}, metav1.CreateOptions{})
	if err != nil {
		m.Fatal(err)
	}
	m.patchStatus(p, `{"status":{"phase":"Running","podIP":"10.1.0.3","podIPs":[{"ip":"10.1.0.3"},{"ip":"fd00::3"}],"conditions":[{"type":"Ready","status":"False"}]}}`)
	return p
}

func (m *mesh) service(name string, spec corev1.ServiceSpec) {
	m.Helper()
	must(m.T)(m.client.CoreV1().Services("shop").Create(m.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{}))
}

func servicePort(name string, port int32, target string) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Port: port, TargetPort: intstr.FromString(target)}
}

// TestControlplaneTellsWhatServicesSay goes the whole way: what the API makes of an object, what is kept of it, and what a
// ztunnel is told.
func TestControlplaneTellsWhatServicesSay(t *testing.T) {
	m := newMesh(t)
	named, ports := map[string]string{"app": "named"}, []corev1.ServicePort{{Port: 80}}
	local, zone, node := corev1.ServiceInternalTrafficPolicyLocal, "PreferClose", "PreferSameNode"
	m.namedPod()
	m.service("named", corev1.ServiceSpec{Selector: named, PublishNotReadyAddresses: true, Ports: []corev1.ServicePort{
		servicePort("http", 80, "http"), servicePort("admin", 90, "admin"), servicePort("gone", 91, "gone"),
	}})
	m.service("local", corev1.ServiceSpec{Selector: named, Ports: ports, InternalTrafficPolicy: &local})
	m.service("zone", corev1.ServiceSpec{Selector: named, Ports: ports, TrafficDistribution: &zone})
	m.service("node", corev1.ServiceSpec{Selector: named, Ports: ports, TrafficDistribution: &node})
	m.service("headless", corev1.ServiceSpec{Selector: named, Ports: ports, ClusterIP: corev1.ClusterIPNone})
	m.service("outside", corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.com"})
	m.service("legacy", corev1.ServiceSpec{Ports: ports})
	ready, target := false, int32(8081)
	must(t)(m.client.DiscoveryV1().EndpointSlices("shop").Create(t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "legacy-1", Labels: map[string]string{discoveryv1.LabelServiceName: "legacy"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &target}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.7"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
	}, metav1.CreateOptions{}))

	a := m.start("a")
	conn, ctx := m.dial(a)
	m.wantReady(a)
	all, err := addresses(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	checkServices(t, all)
	checkNamedPod(t, all)
	legacy := all["Kubernetes/discovery.k8s.io/EndpointSlice/shop/legacy-1/192.0.2.7"].GetWorkload()
	if legacy == nil || legacy.GetStatus() != workloadapi.WorkloadStatus_UNHEALTHY {
		t.Errorf("endpoint that is not ready: got %v", legacy)
	}
	m.checkLeaving(ctx, conn)
}

func checkServices(t *testing.T, all map[string]*workloadapi.Address) {
	t.Helper()
	for name, want := range map[string]struct {
		mode      workloadapi.LoadBalancing_Mode
		scopes    []workloadapi.LoadBalancing_Scope
		health    workloadapi.LoadBalancing_HealthPolicy
		addresses int
	}{
		"named":    {health: workloadapi.LoadBalancing_ALLOW_ALL, addresses: 1},
		"local":    {mode: workloadapi.LoadBalancing_STRICT, scopes: []workloadapi.LoadBalancing_Scope{scopeNode}, addresses: 1},
		"zone":     {mode: workloadapi.LoadBalancing_FAILOVER, scopes: []workloadapi.LoadBalancing_Scope{scopeNetwork, scopeRegion, scopeZone}, addresses: 1},
		"node":     {mode: workloadapi.LoadBalancing_FAILOVER, scopes: []workloadapi.LoadBalancing_Scope{scopeNetwork, scopeRegion, scopeZone, scopeSubzone, scopeNode}, addresses: 1},
		"headless": {},
	} {
		s := all["shop/"+name+".shop.svc.cluster.local"].GetService()
		lb := s.GetLoadBalancing()
		if s == nil || lb.GetMode() != want.mode || !slices.Equal(lb.GetRoutingPreference(), want.scopes) || lb.GetHealthPolicy() != want.health || len(s.GetAddresses()) != want.addresses {
			t.Errorf("service %s: got %v, want %v", name, s, want)
		}
	}
	if s := all["shop/outside.shop.svc.cluster.local"]; s != nil {
		t.Errorf("ExternalName: got %v, want none", s)
	}
}

func checkNamedPod(t *testing.T, all map[string]*workloadapi.Address) {
	t.Helper()
	w := all["Kubernetes//Pod/shop/named"].GetWorkload()
	if w.GetStatus() != workloadapi.WorkloadStatus_UNHEALTHY || w.GetTunnelProtocol() != workloadapi.TunnelProtocol_NONE || len(w.GetAddresses()) != 2 || w.GetServiceAccount() != "default" {
		t.Errorf("pod that is neither ready nor in the mesh: got %v", w)
	}
	got := map[uint32]uint32{}
	for _, p := range w.GetServices()["shop/named.shop.svc.cluster.local"].GetPorts() {
		got[p.ServicePort] = p.TargetPort
	}
	if len(got) != 2 || got[80] != 8080 || got[90] != 9901 {
		t.Errorf("ports by name: got %v, want 80 to 8080, 90 to 9901", got)
	}
	for _, p := range all["shop/named.shop.svc.cluster.local"].GetService().GetPorts() {
		if p.TargetPort != 0 {
			t.Errorf("port %d of the service has target %d, but each pod resolves it by itself", p.ServicePort, p.TargetPort)
		}
	}
}

// checkLeaving deletes a pod, which stays as long as its grace lasts: nobody is there to end it.
func (m *mesh) checkLeaving(ctx context.Context, conn *grpc.ClientConn) {
	m.Helper()
	if err := m.client.CoreV1().Pods("shop").Delete(m.Context(), "db", metav1.DeleteOptions{}); err != nil {
		m.Fatal(err)
	}
	testutil.Eventually(m, time.Minute, func() error {
		all, err := addresses(ctx, conn)
		if err != nil {
			return err
		}
		if w := all["Kubernetes//Pod/shop/db"].GetWorkload(); w == nil || w.GetStatus() != workloadapi.WorkloadStatus_UNHEALTHY {
			return fmt.Errorf("pod that is being deleted: got %v, want it unhealthy", w)
		}
		return nil
	})
}
