// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1alpha1 "istio.io/api/security/v1alpha1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/installer/kube"
	labkube "github.com/sluice-mesh/sluice/internal/lab/kube"
	"github.com/sluice-mesh/sluice/internal/testutil"
	"github.com/sluice-mesh/sluice/internal/workloadapi"
)

// controlplaneUser is the service account that the manifests give the control plane.
const controlplaneUser = "system:serviceaccount:sluice-system:sluice-controlplane"

// applyRights applies the manifest of all the rights that the control plane is given.
func (m *mesh) applyRights() {
	m.Helper()
	data, err := os.ReadFile("../manifests/overlays/api/controlplane-rbac.yaml")
	if err != nil {
		m.Fatal(err)
	}
	kinds := map[string]schema.GroupVersionResource{
		"ServiceAccount":     {Version: "v1", Resource: "serviceaccounts"},
		"ClusterRole":        rbacv1.SchemeGroupVersion.WithResource("clusterroles"),
		"ClusterRoleBinding": rbacv1.SchemeGroupVersion.WithResource("clusterrolebindings"),
		"Role":               rbacv1.SchemeGroupVersion.WithResource("roles"),
		"RoleBinding":        rbacv1.SchemeGroupVersion.WithResource("rolebindings"),
	}
	for text := range strings.SplitSeq(string(data), "\n---\n") {
		o := &unstructured.Unstructured{}
		if err := yaml.UnmarshalStrict([]byte(text), &o.Object); err != nil {
			m.Fatal(err)
		}
		must(m.T)(m.api.Dynamic().Resource(kinds[o.GetKind()]).Namespace(o.GetNamespace()).Create(m.Context(), o, metav1.CreateOptions{FieldValidation: "Strict"}))
	}
}

// mesh is an API server with two pods on two nodes, and a control plane that has no more rights than it needs.
type mesh struct {
	*testing.T
	api     *labkube.APIServer
	client  kubernetes.Interface
	ztunnel *corev1.Pod // of node n1
}

func newMesh(t *testing.T) *mesh {
	api := labkube.NewAPIServer(t)
	m := &mesh{T: t, api: api, client: api.Client()}
	ctx := t.Context()
	for _, name := range []string{"sluice-system", "shop"} {
		must(t)(m.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))
	}
	m.applyRights()
	must(t)(m.client.CoreV1().ServiceAccounts("sluice-system").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "ztunnel"}}, metav1.CreateOptions{}))
	m.ztunnel = m.pod("sluice-system", "zt", "n1", "ztunnel", "10.1.0.1")
	m.pod("shop", "web", "n1", "web", "10.1.0.2")
	m.pod("shop", "db", "n2", "db", "10.2.0.2")
	return m
}

// must fails the test if a call of the API did.
func must(t *testing.T) func(_ any, err error) {
	return func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (m *mesh) pod(namespace, name, node, account, address string) *corev1.Pod {
	m.Helper()
	p, err := m.client.CoreV1().Pods(namespace).Create(m.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{NodeName: node, ServiceAccountName: account, Containers: []corev1.Container{{Name: "app", Image: "app:1"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		m.Fatal(err)
	}
	m.patchStatus(p, fmt.Sprintf(`{"metadata":{"annotations":{"ambient.istio.io/redirection":"enabled"}},"status":{"phase":"Running","podIP":%q,"podIPs":[{"ip":%q}]}}`, address, address))
	return p
}

func (m *mesh) patchStatus(p *corev1.Pod, patch string) {
	m.Helper()
	must(m.T)(m.client.CoreV1().Pods(p.Namespace).Patch(m.Context(), p.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status"))
}

// replica is a control plane that runs.
type replica struct {
	xds, metrics string
	stop         func()
}

// start runs a control plane until the test ends, or stop is called.
func (m *mesh) start(identity string) *replica {
	m.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	local := func() string { return "127.0.0.1:" + strconv.Itoa(testutil.FreePort(m)) }
	r := &replica{xds: local(), metrics: local()}
	args := []string{"--kubeconfig", m.api.KubeconfigFor(controlplaneUser, "system:serviceaccounts"), "--namespace", "sluice-system",
		"--identity", identity, "--listen", r.xds, "--metrics-address", r.metrics}
	go func() { done <- controlplaneCommand(ctx, args, m.Output(), m.Output()) }()
	ended := false
	r.stop = func() {
		cancel()
		if !ended {
			ended = true
			if err := <-done; err != nil {
				m.Errorf("control plane %s: %v", identity, err)
			}
		}
	}
	m.Cleanup(r.stop)
	return r
}

// get asks for a page of the replica's.
func (r *replica) get(path string) (code int, body string) {
	answer, err := http.Get("http://" + r.metrics + path)
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, err.Error()
	}
	return answer.StatusCode, string(text)
}

// wantMetrics waits for lines in what Prometheus reads.
func (m *mesh) wantMetrics(r *replica, lines ...string) {
	m.Helper()
	testutil.Eventually(m, time.Minute, func() error {
		_, page := r.get("/metrics")
		for _, line := range lines {
			if !strings.Contains(page, "\n"+line+"\n") {
				return fmt.Errorf("no %q in\n%s", line, page)
			}
		}
		return nil
	})
}

func (m *mesh) wantReady(r *replica) {
	m.Helper()
	testutil.Eventually(m, time.Minute, func() error {
		if code, body := r.get("/healthz/ready"); code != http.StatusOK {
			return fmt.Errorf("not ready: %d %s", code, body)
		}
		return nil
	})
}

// dial connects as a ztunnel does: by the root that the ConfigMap has, with a token bound to its pod.
func (m *mesh) dial(r *replica) (*grpc.ClientConn, context.Context) {
	m.Helper()
	var root string
	testutil.Eventually(m, time.Minute, func() error {
		cm, err := m.client.CoreV1().ConfigMaps("sluice-system").Get(m.Context(), kube.RootConfigMap, metav1.GetOptions{})
		if err == nil {
			root = cm.Data["root-cert.pem"]
		}
		return err
	})
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(root))
	conn, err := grpc.NewClient(r.xds, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		RootCAs: pool, ServerName: "sluice-controlplane.sluice-system.svc", MinVersion: tls.VersionTLS13,
	})))
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() { _ = conn.Close() })
	answer, err := m.client.CoreV1().ServiceAccounts("sluice-system").CreateToken(m.Context(), "ztunnel", &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			Audiences:      []string{kube.TokenAudience},
			BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "zt", UID: m.ztunnel.UID},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		m.Fatal(err)
	}
	return conn, metadata.AppendToOutgoingContext(m.Context(), "authorization", "Bearer "+answer.Status.Token)
}

func TestControlplaneServesTheCluster(t *testing.T) {
	m := newMesh(t)
	must(t)(m.client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2", Labels: map[string]string{
		corev1.LabelTopologyRegion: "eu", corev1.LabelTopologyZone: "eu-1",
	}}}, metav1.CreateOptions{}))
	must(t)(m.client.CoreV1().Services("shop").Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "db"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "db"}, Ports: []corev1.ServicePort{{Port: 5432}}},
	}, metav1.CreateOptions{}))
	m.outsider()
	a := m.start("a")
	conn, ctx := m.dial(a)

	testutil.Eventually(t, time.Minute, func() error { _, err := certificate(ctx, conn, "shop", "web"); return err })
	if _, err := certificate(ctx, conn, "shop", "db"); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), `node "n1"`) {
		t.Errorf("certificate for a pod of another node: got %v, want Unauthenticated and why", err)
	}
	if _, err := certificate(t.Context(), conn, "shop", "web"); status.Code(err) != codes.Unauthenticated {
		t.Errorf("certificate without a token: got %v, want Unauthenticated", err)
	}
	if _, err := addresses(t.Context(), conn); status.Code(err) != codes.Unauthenticated {
		t.Errorf("addresses without a token: got %v, want Unauthenticated", err)
	}
	checkAddresses(ctx, t, conn)
	m.wantReady(a)
	m.wantMetrics(a, "sluice_controlplane_leads 1", `sluice_controlplane_objects{kind="Pod"} 3`, "sluice_controlplane_callers_refused_total 2",
		`sluice_controlplane_certificates_total{result="issued"} 1`, `sluice_controlplane_certificates_total{result="refused"} 1`)
	m.checkStrict(ctx, conn)
}

// anchors are what peers are to trust, by a certificate that was got.
func anchors(ctx context.Context, conn *grpc.ClientConn) (string, error) {
	chain, err := certificate(ctx, conn, "shop", "web")
	if err != nil {
		return "", err
	}
	return chain[len(chain)-1], nil
}

func TestControlplaneReplicasShareOneRoot(t *testing.T) {
	m := newMesh(t)
	a, b := m.start("a"), m.start("b") // at once: both find no root
	var roots []string
	for _, r := range []*replica{a, b} {
		m.wantReady(r) // both serve
		conn, ctx := m.dial(r)
		root, err := anchors(ctx, conn)
		if err != nil {
			t.Fatal(err)
		}
		roots = append(roots, root)
	}
	if roots[0] != roots[1] {
		t.Fatalf("two roots:\n%s\n%s", roots[0], roots[1])
	}
	leads := func(r *replica) bool {
		_, page := r.get("/metrics")
		return strings.Contains(page, "\nsluice_controlplane_leads 1\n")
	}
	testutil.Eventually(t, time.Minute, func() error {
		if leads(a) == leads(b) {
			return fmt.Errorf("a leads: %v, b leads: %v", leads(a), leads(b))
		}
		return nil
	})
	if leads(b) {
		a, b = b, a
	}
	// Whoever is left serves on, and comes to look after the root: it puts back what is deleted, as it was.
	a.stop()
	secrets := m.client.CoreV1().Secrets("sluice-system")
	m.wantMetrics(b, "sluice_controlplane_leads 1")
	if err := secrets.Delete(t.Context(), kube.RootSecret, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	testutil.Eventually(t, time.Minute, func() error { _, err := secrets.Get(t.Context(), kube.RootSecret, metav1.GetOptions{}); return err })
	conn, ctx := m.dial(m.start("c"))
	testutil.Eventually(t, time.Minute, func() error {
		root, err := anchors(ctx, conn)
		if err == nil && root != roots[0] {
			t.Fatal("the root changed")
		}
		return err
	})
}

func TestControlplaneServesOnInAnOutage(t *testing.T) {
	m := newMesh(t)
	a := m.start("a")
	conn, ctx := m.dial(a)
	m.wantReady(a)
	if _, err := anchors(ctx, conn); err != nil {
		t.Fatal(err)
	}
	const answers = "sluice_kubernetes_api_outage_seconds 0"
	m.wantMetrics(a, answers)
	m.api.Stop()
	m.wantMetrics(a, "sluice_controlplane_leads 0") // which takes as long as the Lease lasts
	if _, page := a.get("/metrics"); !strings.Contains(page, "\nsluice_kubernetes_api_outage_seconds ") || strings.Contains(page, "\n"+answers+"\n") {
		t.Errorf("no outage in\n%s", page)
	}
	m.wantReady(a)
	if _, err := anchors(ctx, conn); err != nil {
		t.Errorf("certificate in an outage: %v", err)
	}
	if all, err := addresses(ctx, conn); err != nil || all["Kubernetes//Pod/shop/db"] == nil {
		t.Errorf("addresses in an outage: %d of them, %v", len(all), err)
	}
	m.api.Start()
	m.wantMetrics(a, "sluice_controlplane_leads 1", answers)
}

func TestControlplaneChangesItsRoot(t *testing.T) {
	m := newMesh(t)
	a := m.start("a")
	conn, ctx := m.dial(a)
	m.wantReady(a)
	before, err := anchors(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	next, err := controlplane.NewRootPEM("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	// As docs/CONTROLPLANE.md says: first both are trusted, by clients too, then the new one signs.
	m.patchRoot(map[string]string{"root-cert.pem": before + string(next.Cert)})
	m.wantAnchors(ctx, conn, before+string(next.Cert))
	testutil.Eventually(t, time.Minute, func() error {
		cm, err := m.client.CoreV1().ConfigMaps("sluice-system").Get(t.Context(), kube.RootConfigMap, metav1.GetOptions{})
		if err == nil && !strings.Contains(cm.Data["root-cert.pem"], string(next.Cert)) {
			return errors.New("the new root is not published")
		}
		return err
	})
	conn, ctx = m.dial(a)
	m.patchRoot(map[string]string{"root-key.pem": string(next.Key), "root-cert.pem": string(next.Cert) + before})
	m.wantAnchors(ctx, conn, string(next.Cert)+before)
}

func (m *mesh) patchRoot(data map[string]string) {
	m.Helper()
	patch, err := json.Marshal(map[string]any{"stringData": data})
	if err != nil {
		m.Fatal(err)
	}
	must(m.T)(m.client.CoreV1().Secrets("sluice-system").Patch(m.Context(), kube.RootSecret, types.MergePatchType, patch, metav1.PatchOptions{}))
}

func (m *mesh) wantAnchors(ctx context.Context, conn *grpc.ClientConn, want string) {
	m.Helper()
	testutil.Eventually(m, time.Minute, func() error {
		got, err := anchors(ctx, conn)
		if err == nil && got != want {
			return fmt.Errorf("anchors:\n%s\nwant\n%s", got, want)
		}
		return err
	})
}

// outsider is a service with an address that is no pod's.
func (m *mesh) outsider() {
	m.Helper()
	must(m.T)(m.client.CoreV1().Services("shop").Create(m.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "legacy"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "tcp", Port: 80}}},
	}, metav1.CreateOptions{}))
	name, port := "tcp", int32(8080)
	must(m.T)(m.client.DiscoveryV1().EndpointSlices("shop").Create(m.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "legacy-1", Labels: map[string]string{discoveryv1.LabelServiceName: "legacy"}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.7"}}},
		Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}, metav1.CreateOptions{}))
}

func checkAddresses(ctx context.Context, t *testing.T, conn *grpc.ClientConn) {
	t.Helper()
	all, err := addresses(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	db := all["Kubernetes//Pod/shop/db"].GetWorkload()
	if db.GetTunnelProtocol() != workloadapi.TunnelProtocol_HBONE || db.GetLocality().GetZone() != "eu-1" || db.GetNode() != "n2" || db.GetServiceAccount() != "db" {
		t.Errorf("workload db: got %v", db)
	}
	if ports := db.GetServices()["shop/db.shop.svc.cluster.local"].GetPorts(); len(ports) != 1 || ports[0].TargetPort != 5432 {
		t.Errorf("ports of db: got %v", ports)
	}
	if s := all["shop/db.shop.svc.cluster.local"].GetService(); len(s.GetAddresses()) != 1 {
		t.Errorf("service db: got %v, want the address that the API gave it", s)
	}
	legacy := all["Kubernetes/discovery.k8s.io/EndpointSlice/shop/legacy-1/192.0.2.7"].GetWorkload()
	if ports := legacy.GetServices()["shop/legacy.shop.svc.cluster.local"].GetPorts(); len(ports) != 1 || ports[0].TargetPort != 8080 || legacy.GetTunnelProtocol() != workloadapi.TunnelProtocol_NONE {
		t.Errorf("endpoint that is no pod: got %v", legacy)
	}
}

// checkStrict makes the mesh strict, and wants the policy with the workload.
func (m *mesh) checkStrict(ctx context.Context, conn *grpc.ClientConn) {
	m.Helper()
	must(m.T)(m.client.CoreV1().Namespaces().Create(m.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "istio-system"}}, metav1.CreateOptions{}))
	must(m.T)(m.api.Dynamic().Resource(labkube.PeerAuthentications).Namespace("istio-system").Create(m.Context(), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": map[string]any{"name": "default"},
		"spec": map[string]any{"mtls": map[string]any{"mode": "STRICT"}},
	}}, metav1.CreateOptions{}))
	testutil.Eventually(m, time.Minute, func() error {
		all, err := addresses(ctx, conn)
		if err != nil {
			return err
		}
		if got := all["Kubernetes//Pod/shop/web"].GetWorkload().GetAuthorizationPolicies(); len(got) != 1 {
			return fmt.Errorf("policies of web: %q, want the strict one", got)
		}
		return nil
	})
}

// A policy that is not carried out as it is written says so where its author looks.
func TestControlplaneTellsAuthorsOfMistakes(t *testing.T) {
	m := newMesh(t)
	policies := m.api.Dynamic().Resource(labkube.AuthorizationPolicies).Namespace("shop")
	write := func(name string, rule map[string]any) {
		must(t)(policies.Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": map[string]any{"name": name},
			"spec": map[string]any{"action": "DENY", "rules": []any{rule}},
		}}, metav1.CreateOptions{}))
	}
	write("before", map[string]any{"from": []any{map[string]any{"source": map[string]any{"ipBlocks": []any{"10.0.0.0/33"}}}}})
	a, b := m.start("a"), m.start("b")
	m.wantReady(a)
	m.wantReady(b)
	write("later", map[string]any{"to": []any{map[string]any{"operation": map[string]any{"paths": []any{"/admin"}}}}})
	want := map[string]string{"before PolicyMistake": "10.0.0.0/33", "later PolicyWithoutEffect": "only a waypoint sees"}
	testutil.Eventually(t, time.Minute, func() error {
		all, err := m.client.CoreV1().Events("shop").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		told := map[string]string{}
		for _, e := range all.Items {
			about := e.InvolvedObject.Name + " " + e.Reason
			if told[about] != "" {
				t.Fatalf("%s was told twice", about)
			}
			told[about] = e.Message
		}
		for about, part := range want {
			if !strings.Contains(told[about], part) {
				return fmt.Errorf("event %q: have %q, want one with %q", about, told, part)
			}
		}
		return nil
	})
}

// certificate asks for one as ambient section 7 says.
func certificate(ctx context.Context, conn *grpc.ClientConn, namespace, account string) ([]string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	id := &url.URL{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/" + namespace + "/sa/" + account}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{id}}, key)
	if err != nil {
		return nil, err
	}
	md, err := structpb.NewStruct(map[string]any{"ImpersonatedIdentity": id.String()})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	answer, err := securityv1alpha1.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, &securityv1alpha1.IstioCertificateRequest{
		Csr: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), ValidityDuration: 3600, Metadata: md,
	})
	return answer.GetCertChain(), err
}

// addresses is the first answer to a subscription to all.
func addresses(ctx context.Context, conn *grpc.ClientConn) (map[string]*workloadapi.Address, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	s, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.Send(&discovery.DeltaDiscoveryRequest{
		Node: &core.Node{Id: "ztunnel~10.1.0.1~zt.sluice-system~sluice-system.svc.cluster.local"}, TypeUrl: "type.googleapis.com/istio.workload.Address",
	}); err != nil && !errors.Is(err, io.EOF) { // for why the stream has ended, Recv tells
		return nil, err
	}
	answer, err := s.Recv()
	if err != nil {
		return nil, err
	}
	all := map[string]*workloadapi.Address{}
	for _, r := range answer.GetResources() {
		a := &workloadapi.Address{}
		if err := r.GetResource().UnmarshalTo(a); err != nil {
			return nil, err
		}
		all[r.GetName()] = a
	}
	return all, nil
}
