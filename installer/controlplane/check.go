// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"fmt"
	"net/netip"
	"strings"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// checkName makes sure that names can be parts of xDS names and SPIFFE URIs. Objects without a namespace go to
// "default", as with kubectl.
func checkName(doc *yaml.Node, meta *metav1.ObjectMeta, namespaced bool) error {
	line := lineOfPath(doc, "metadata.name")
	if meta.Name == "" {
		return atLine(line, "metadata.name is missing")
	}
	if problems := validation.IsDNS1123Subdomain(meta.Name); len(problems) > 0 {
		return atLine(line, "metadata.name: %q: %s", meta.Name, problems[0])
	}
	if !namespaced {
		meta.Namespace = ""
		return nil
	}
	if meta.Namespace == "" {
		meta.Namespace = metav1.NamespaceDefault
	}
	if problems := validation.IsDNS1123Label(meta.Namespace); len(problems) > 0 {
		return atLine(lineOfPath(doc, "metadata.namespace"), "metadata.namespace: %q: %s", meta.Namespace, problems[0])
	}
	return nil
}

// checker collects the warnings about one object and places mistakes on their lines.
type checker struct {
	doc  *yaml.Node
	at   Origin
	warn *[]*FileError
	live bool // the object is an API server's, which assigns addresses and has EndpointSlices
}

func (c checker) errorf(path, format string, args ...any) error {
	return atLine(lineOfPath(c.doc, path), "%s: %s", path, fmt.Sprintf(format, args...))
}

func (c checker) warnf(path, format string, args ...any) {
	*c.warn = append(*c.warn, &FileError{
		Origin: Origin{Path: c.at.Path, Line: lineOfPath(c.doc, path)},
		Err:    fmt.Errorf("%s: %s", path, fmt.Sprintf(format, args...)),
	})
}

// check validates the object that was added last, which doc says.
func (o *objects) check(doc *yaml.Node, at Origin) error {
	c := checker{doc: doc, at: at, warn: &o.warnings}
	switch kind := child(doc, "kind").Value; kind {
	case "Namespace":
		c.waypoint(last(o.namespaces).Labels)
		return nil
	case "Pod":
		return c.pod(last(o.pods).Pod)
	case "Service":
		return c.service(last(o.services).Service)
	case "PeerAuthentication":
		return c.peerAuthentication(last(o.peerAuths))
	default:
		return c.authorizationPolicy(last(o.authz))
	}
}

func last[T any](s []T) T { return s[len(s)-1] }

func (c checker) waypoint(labels map[string]string) {
	if v := labels[labelUseWaypoint]; v != "" && v != modeNone {
		c.warnf("metadata.labels", "%s=%s: the embedded control plane knows no waypoints; the label is ignored", labelUseWaypoint, v)
	}
}

func (c checker) pod(p *corev1.Pod) error {
	c.waypoint(p.Labels)
	if sa := p.Spec.ServiceAccountName; sa != "" {
		if problems := validation.IsDNS1123Subdomain(sa); len(problems) > 0 {
			return c.errorf("spec.serviceAccountName", "%q: %s", sa, problems[0])
		}
	}
	for i, ip := range p.Status.PodIPs {
		if _, err := netip.ParseAddr(ip.IP); err != nil {
			return c.errorf(fmt.Sprintf("status.podIPs[%d]", i), "%q is no IP address", ip.IP)
		}
	}
	if ip := p.Status.PodIP; ip != "" {
		if _, err := netip.ParseAddr(ip); err != nil {
			return c.errorf("status.podIP", "%q is no IP address", ip)
		}
	}
	return nil
}

func (c checker) service(s *corev1.Service) error {
	c.waypoint(s.Labels)
	for i, ip := range clusterIPs(s) {
		if _, err := netip.ParseAddr(ip); err != nil {
			return c.errorf("spec.clusterIP", "%q (number %d) is no IP address", ip, i+1)
		}
	}
	for i, p := range s.Spec.Ports {
		if p.Port < 1 || p.Port > 65535 {
			return c.errorf(fmt.Sprintf("spec.ports[%d].port", i), "%d is no port", p.Port)
		}
		if t := p.TargetPort.IntVal; t < 0 || t > 65535 {
			return c.errorf(fmt.Sprintf("spec.ports[%d].targetPort", i), "%d is no port", t)
		}
		if !isTCP(p.Protocol) && !c.live {
			c.warnf(fmt.Sprintf("spec.ports[%d]", i), "protocol %s is outside the mesh; the port is left out", p.Protocol)
		}
	}
	switch {
	case c.live: // what is everyday in a cluster is for its documentation
	case s.Spec.Type == corev1.ServiceTypeExternalName:
		c.warnf("spec.type", "ExternalName services are left to DNS; the service is not published")
	case len(s.Spec.Selector) == 0:
		c.warnf("spec", "no selector: the service has no endpoints (Endpoints and EndpointSlices are not read)")
	case s.Spec.ClusterIP == "" && len(s.Spec.ClusterIPs) == 0:
		c.warnf("spec", "no clusterIP: the service has no address (nothing assigns one here; write \"clusterIP: None\" if that is meant)")
	}
	return nil
}

// clusterIPs are the virtual addresses of a service; none for a headless one.
func clusterIPs(s *corev1.Service) []string {
	ips := s.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{s.Spec.ClusterIP}
	}
	var out []string
	for _, ip := range ips {
		if ip != "" && ip != corev1.ClusterIPNone {
			out = append(out, ip)
		}
	}
	return out
}

func isTCP(p corev1.Protocol) bool { return p == "" || strings.EqualFold(string(p), "TCP") }
