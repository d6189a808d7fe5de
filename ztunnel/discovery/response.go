// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"errors"
	"fmt"
	"strings"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/sluice-mesh/sluice/internal/securityapi"
	"github.com/sluice-mesh/sluice/internal/workloadapi"
)

// The resource types we subscribe to.
const (
	AddressType       = "type.googleapis.com/istio.workload.Address"
	AuthorizationType = "type.googleapis.com/istio.security.Authorization"
)

// maxNamed bounds a refusal's text: control planes read requests of a few MiB at most.
const maxNamed = 200

// accepted is what one response amounts to: the good resources, and the names of those with their versions.
type accepted struct {
	update   Update
	versions map[string]string
	removed  []string
}

// parseResponse sorts the good resources of a response from the bad. The error names each bad one and why, and the good
// ones are to be applied all the same: a control plane that cannot publish one policy must still publish the others.
func parseResponse(r *discoveryv3.DeltaDiscoveryResponse) (accepted, error) {
	out := accepted{versions: map[string]string{}, removed: r.GetRemovedResources()}
	switch r.GetTypeUrl() {
	case AddressType:
		out.update.RemoveAddresses = out.removed
	case AuthorizationType:
		out.update.RemovePolicies = out.removed
	default:
		return accepted{}, fmt.Errorf("type %q was not asked for", r.GetTypeUrl())
	}
	var bad []string
	for i, resource := range r.GetResources() {
		name, err := out.update.add(r.GetTypeUrl(), resource)
		if resource.GetName() != "" {
			name = resource.GetName()
		}
		if err != nil {
			bad = append(bad, fmt.Sprintf("resource %d %q: %s", i, name, oneLine(err)))
			continue
		}
		out.versions[name] = resource.GetVersion()
	}
	if len(bad) > maxNamed {
		bad = append(bad[:maxNamed], fmt.Sprintf("and %d more", len(bad)-maxNamed))
	}
	if len(bad) > 0 {
		return out, errors.New(strings.Join(bad, "; "))
	}
	return out, nil
}

// add parses one resource into u and returns its name.
func (u *Update) add(typeURL string, r *discoveryv3.Resource) (string, error) {
	body := r.GetResource()
	if body == nil {
		return "", errors.New("no content")
	}
	if body.GetTypeUrl() != typeURL {
		return "", fmt.Errorf("content is %q, want %q", body.GetTypeUrl(), typeURL)
	}
	if typeURL == AuthorizationType {
		return u.addPolicy(body.GetValue())
	}
	return u.addAddress(body.GetValue())
}

func (u *Update) addAddress(raw []byte) (string, error) {
	var m workloadapi.Address
	if err := proto.Unmarshal(raw, &m); err != nil {
		return "", err
	}
	switch t := m.GetType().(type) {
	case *workloadapi.Address_Workload:
		w, err := parseWorkload(t.Workload)
		if err != nil {
			return t.Workload.GetUid(), err
		}
		u.Workloads = append(u.Workloads, w)
		return w.UID, nil
	case *workloadapi.Address_Service:
		s, err := parseService(t.Service)
		if err != nil {
			return ServiceKey{t.Service.GetNamespace(), t.Service.GetHostname()}.String(), err
		}
		u.Services = append(u.Services, s)
		return s.Key().String(), nil
	}
	return "", errors.New("neither workload nor service")
}

func (u *Update) addPolicy(raw []byte) (string, error) {
	var m securityapi.Authorization
	if err := proto.Unmarshal(raw, &m); err != nil {
		return "", err
	}
	p, err := parsePolicy(&m)
	if err != nil {
		return m.GetNamespace() + "/" + m.GetName(), err
	}
	u.Policies = append(u.Policies, p)
	return p.Key(), nil
}

// oneLine is err for a place where errors.Join's line breaks do not belong. protobuf writes its own messages with a
// non-breaking space now and then, so that nobody compares them.
func oneLine(err error) string {
	return strings.NewReplacer("\n", ", ", "\u00a0", " ").Replace(err.Error())
}
