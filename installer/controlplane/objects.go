// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	securityv1 "istio.io/api/security/v1beta1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Name is a namespace and a name in it. The namespace is empty for a Namespace.
type Name = types.NamespacedName

// Namespace, Pod and Service are the core objects with where they were read. They are shared: do not change them.
type (
	Namespace struct {
		*corev1.Namespace
		Origin Origin
	}
	Pod struct {
		*corev1.Pod
		Origin Origin
	}
	Service struct {
		*corev1.Service
		Origin Origin
	}
	// Node and EndpointSlice come from an API server only.
	Node struct {
		*corev1.Node
		Origin Origin
	}
	EndpointSlice struct {
		*discoveryv1.EndpointSlice
		Origin Origin
	}
)

// PeerAuthentication and AuthorizationPolicy are Istio's policies. Their messages come from istio.io/api rather than
// istio.io/client-go, whose decoder drops unknown fields without a word.
type (
	PeerAuthentication struct {
		metav1.ObjectMeta
		Spec   *securityv1.PeerAuthentication
		Origin Origin
	}
	AuthorizationPolicy struct {
		metav1.ObjectMeta
		Spec   *securityv1.AuthorizationPolicy
		Origin Origin
	}
)

// IsOf tells whether uid, as a runtime has it, is the pod's. A static pod's runtime knows it by the hash of its file, which
// the API has as an annotation.
func IsOf(p *corev1.Pod, uid string) bool {
	return string(p.UID) == uid || uid != "" && p.Annotations["kubernetes.io/config.mirror"] == uid
}

// objects is what one file says.
type objects struct {
	namespaces []*Namespace
	pods       []*Pod
	services   []*Service
	nodes      []*Node
	slices     []*EndpointSlice
	peerAuths  []*PeerAuthentication
	authz      []*AuthorizationPolicy
	warnings   []*FileError
}

func (o *objects) count() int {
	return len(o.namespaces) + len(o.pods) + len(o.services) + len(o.nodes) + len(o.slices) + len(o.peerAuths) + len(o.authz)
}

func nameOf(m *metav1.ObjectMeta) Name { return Name{Namespace: m.Namespace, Name: m.Name} }

// Labels, annotations and values of Istio's that decide something here.
const (
	labelDataplaneMode   = "istio.io/dataplane-mode"
	modeAmbient          = "ambient"
	modeNone             = "none"
	annotationSidecar    = "sidecar.istio.io/status"
	annotationRedirect   = "ambient.istio.io/redirection"
	redirectEnabled      = "enabled"
	labelTunnel          = "networking.istio.io/tunnel"
	tunnelHTTP           = "http"
	labelNetwork         = "topology.istio.io/network"
	labelUseWaypoint     = "istio.io/use-waypoint"
	annotationDryRun     = "istio.io/dry-run"
	annotationTrafficDst = "networking.istio.io/traffic-distribution"
)
