// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// localFile is what a control plane would send, as YAML (ambient section 5.9).
type localFile struct {
	Workloads []localWorkload `json:"workloads"`
	Policies  []localPolicy   `json:"policies"`
	Services  []localService  `json:"services"`
}

// ParseLocal reads a file of workloads, services and policies. A key it does not know is an error, and all mistakes are
// returned together.
func ParseLocal(text []byte) (Update, error) {
	var file localFile
	if err := yaml.UnmarshalStrict(text, &file); err != nil {
		return Update{}, err
	}
	var u Update
	var errs []error
	collect(&u.Workloads, &errs, "workloads", file.Workloads, localWorkload.parse)
	collect(&u.Services, &errs, "services", file.Services, localService.parse)
	collect(&u.Policies, &errs, "policies", file.Policies, localPolicy.parse)
	if err := errors.Join(errs...); err != nil {
		return Update{}, err
	}
	return u, nil
}

func collect[In, Out any](into *[]Out, errs *[]error, field string, list []In, parse func(In) (Out, error)) {
	for i, entry := range list {
		v, err := parse(entry)
		if err != nil {
			*errs = append(*errs, fmt.Errorf("%s[%d]: %s", field, i, oneLine(err)))
			continue
		}
		*into = append(*into, v)
	}
}

type localWorkload struct {
	UID                   string                        `json:"uid"`
	Name                  string                        `json:"name"`
	Namespace             string                        `json:"namespace"`
	ServiceAccount        string                        `json:"serviceAccount"`
	TrustDomain           string                        `json:"trustDomain"`
	WorkloadIPs           *[]netip.Addr                 `json:"workloadIps"`
	Hostname              string                        `json:"hostname"`
	Protocol              string                        `json:"protocol"`
	Network               string                        `json:"network"`
	NetworkMode           string                        `json:"networkMode"`
	Node                  string                        `json:"node"`
	CanonicalName         string                        `json:"canonicalName"`
	CanonicalRevision     string                        `json:"canonicalRevision"`
	WorkloadName          string                        `json:"workloadName"`
	WorkloadType          string                        `json:"workloadType"`
	ClusterID             string                        `json:"clusterId"`
	Locality              Locality                      `json:"locality"`
	Status                string                        `json:"status"`
	Capacity              *uint32                       `json:"capacity"`
	NativeTunnel          bool                          `json:"nativeTunnel"`
	Waypoint              *GatewayDump                  `json:"waypoint"`
	NetworkGateway        *GatewayDump                  `json:"networkGateway"`
	ApplicationTunnel     *TunnelDump                   `json:"applicationTunnel"`
	AuthorizationPolicies []string                      `json:"authorizationPolicies"`
	Services              *map[string]map[uint16]uint16 `json:"services"`
}

func (l localWorkload) parse() (*Workload, error) {
	if l.Namespace == "" || l.WorkloadIPs == nil || l.Services == nil {
		return nil, errors.New("namespace, workloadIps and services must be there; the last may be {}")
	}
	w := &Workload{
		UID: l.UID, Name: l.Name, Namespace: l.Namespace, Hostname: l.Hostname, Network: l.Network,
		TrustDomain: cmp.Or(l.TrustDomain, "cluster.local"), ServiceAccount: cmp.Or(l.ServiceAccount, "default"),
		Node: l.Node, CanonicalName: l.CanonicalName, CanonicalRevision: l.CanonicalRevision,
		WorkloadName: l.WorkloadName, NativeTunnel: l.NativeTunnel, ClusterID: cmp.Or(l.ClusterID, "Kubernetes"),
		Locality: l.Locality, Capacity: 1,
		Policies: slices.Compact(slices.Sorted(slices.Values(l.AuthorizationPolicies))),
	}
	if w.UID == "" && w.Name == "" {
		return nil, errors.New("neither uid nor name")
	}
	w.UID = cmp.Or(w.UID, w.ClusterID+"//Pod/"+w.Namespace+"/"+w.Name)
	if l.Capacity != nil {
		w.Capacity = *l.Capacity
	}
	for _, a := range *l.WorkloadIPs {
		w.Addresses = append(w.Addresses, a.Unmap())
	}
	return w, errors.Join(l.parseEnums(w), l.parseServices(w), l.parseReferences(w))
}

func (l localWorkload) parseEnums(w *Workload) error {
	var errs []error
	protocol := choice(&errs, "protocol", l.Protocol, 0, "TCP", "HBONE")
	kind := choice(&errs, "workloadType", l.WorkloadType, 0, "deployment", "cronjob", "pod", "job")
	mode := choice(&errs, "networkMode", l.NetworkMode, 0, "Standard", "HostNetwork")
	status := choice(&errs, "status", l.Status, 0, "Healthy", "Unhealthy")
	w.Protocol, w.WorkloadType, w.HostNetwork, w.Healthy = Protocol(protocol), WorkloadType(kind), mode == 1, status == 0
	return errors.Join(errs...)
}

func (l localWorkload) parseServices(w *Workload) error {
	for name, ports := range *l.Services {
		key, err := parseServiceKey(name)
		if err != nil {
			return fmt.Errorf("services: %w", err)
		}
		if w.Services == nil {
			w.Services = map[ServiceKey]map[uint16]uint16{}
		}
		w.Services[key] = ports
	}
	return nil
}

func (l localWorkload) parseReferences(w *Workload) error {
	var errs []error
	w.Waypoint = localGateway(&errs, "waypoint", l.Waypoint)
	w.NetworkGateway = localGateway(&errs, "networkGateway", l.NetworkGateway)
	if t := l.ApplicationTunnel; t != nil {
		protocol := choice(&errs, "applicationTunnel.protocol", t.Protocol, 0, "NONE", "PROXY")
		w.AppTunnel = &Tunnel{Proxy: protocol == 1, Port: t.Port}
	}
	return errors.Join(errs...)
}

// localGateway reads "network/address" or "namespace/hostname".
func localGateway(errs *[]error, field string, d *GatewayDump) *Gateway {
	if d == nil {
		return nil
	}
	first, rest, ok := strings.Cut(d.Destination, "/")
	if !ok || rest == "" {
		*errs = append(*errs, fmt.Errorf("%s.destination: %q is neither network/address nor namespace/hostname", field, d.Destination))
		return nil
	}
	g := &Gateway{Port: cmp.Or(d.HBONEMTLSPort, DefaultHBONEPort)}
	if a, err := netip.ParseAddr(rest); err == nil {
		g.Address = NetworkAddr{first, a.Unmap()}
	} else {
		g.Hostname = ServiceKey{first, rest}
	}
	return g
}

// choice is the place of text in allowed, or fallback if it is empty. Case does not matter.
func choice(errs *[]error, field, text string, fallback int, allowed ...string) int {
	if text == "" {
		return fallback
	}
	i := slices.IndexFunc(allowed, func(a string) bool { return strings.EqualFold(a, text) })
	if i < 0 {
		*errs = append(*errs, fmt.Errorf("%s: %q is not one of %s", field, text, strings.Join(allowed, ", ")))
		return fallback
	}
	return i
}
