// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sluice-mesh/sluice/internal/workloadapi"
)

// Type URLs of what is served.
const (
	typeAddress       = "type.googleapis.com/istio.workload.Address"
	typeAuthorization = "type.googleapis.com/istio.security.Authorization"
)

// served has policies first, as clients should ask for them: a workload that arrives before the policies it names is
// unprotected until they do.
var served = []string{typeAuthorization, typeAddress}

// resources is one generation of everything that is served: for each type, resources by name. It never changes.
type resources struct {
	generation uint64
	byType     map[string]map[string]*discovery.Resource
	// order lists the names of each type as they are sent: services before the workloads that are their endpoints.
	order map[string][]string
}

// newResources encodes a translation. Versions are hashes of the content, so they mean the same to every server that
// serves the same state, before a restart and after it.
func newResources(generation uint64, t *translation) (*resources, error) {
	r := &resources{
		generation: generation,
		byType:     map[string]map[string]*discovery.Resource{typeAddress: {}, typeAuthorization: {}},
		order:      map[string][]string{},
	}
	for _, s := range t.services {
		address := &workloadapi.Address{Type: &workloadapi.Address_Service{Service: s}}
		if err := r.add(typeAddress, s.Namespace+"/"+s.Hostname, address); err != nil {
			return nil, err
		}
	}
	for _, w := range t.workloads {
		address := &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w}}
		if err := r.add(typeAddress, w.Uid, address); err != nil {
			return nil, err
		}
	}
	for _, p := range t.policies {
		if err := r.add(typeAuthorization, policyKey(p), p); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *resources) add(typeURL, name string, m proto.Message) error {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %q: %w", name, err)
	}
	sum := sha256.Sum256(value)
	r.byType[typeURL][name] = &discovery.Resource{
		Name:     name,
		Version:  hex.EncodeToString(sum[:12]),
		Resource: &anypb.Any{TypeUrl: typeURL, Value: value},
	}
	r.order[typeURL] = append(r.order[typeURL], name)
	return nil
}

// delta is the content of one response.
type delta struct {
	changed []*discovery.Resource
	removed []string
}

func (d delta) empty() bool { return len(d.changed)+len(d.removed) == 0 }

// changed are the resources of a type that held (names and versions) has not, or in another version.
func (r *resources) changed(typeURL string, held map[string]string) []*discovery.Resource {
	var changed []*discovery.Resource
	for _, name := range r.order[typeURL] {
		if res := r.byType[typeURL][name]; held[name] != res.Version {
			changed = append(changed, res)
		}
	}
	return changed
}

// removed are the names in held that are no resources of a type anymore.
func (r *resources) removed(typeURL string, held map[string]string) []string {
	var removed []string
	for name := range held {
		if r.byType[typeURL][name] == nil {
			removed = append(removed, name)
		}
	}
	slices.Sort(removed)
	return removed
}
