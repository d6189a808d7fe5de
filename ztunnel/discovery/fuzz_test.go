// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"encoding/json"
	"os"
	"reflect"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// FuzzParseLocal: a file is refused with a reason or gives records that a store takes, shows and gives up again.
func FuzzParseLocal(f *testing.F) {
	text, err := os.ReadFile("testdata/local.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("workloads:\n- {name: a, uid: u, workloadIps: [10.0.0.1], services: {default/web: {80: 8080}}}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		u, err := ParseLocal(text)
		if err != nil {
			if err.Error() == "" || !reflect.DeepEqual(u, Update{}) {
				t.Errorf("refused with %q, but %+v", err, u)
			}
			return
		}
		takeAndGiveUp(t, u)
	})
}

// FuzzResponse: what a control plane sends is refused as a whole, named, or every resource of it has a version.
func FuzzResponse(f *testing.F) {
	for _, r := range []*discoveryv3.DeltaDiscoveryResponse{
		{TypeUrl: AddressType, RemovedResources: []string{"a", ""}},
		{TypeUrl: AuthorizationType, Resources: []*discoveryv3.Resource{{Name: "n", Version: "1", Resource: &anypb.Any{TypeUrl: AuthorizationType}}}},
		{TypeUrl: AddressType, Resources: []*discoveryv3.Resource{{Name: "n"}, {Resource: &anypb.Any{TypeUrl: AddressType, Value: []byte{10, 0}}}}},
		{TypeUrl: "type.googleapis.com/other"},
	} {
		raw, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var r discoveryv3.DeltaDiscoveryResponse
		if proto.Unmarshal(raw, &r) != nil {
			return
		}
		got, err := parseResponse(&r)
		if err == nil && r.GetTypeUrl() != AddressType && r.GetTypeUrl() != AuthorizationType {
			t.Errorf("type %q was taken", r.GetTypeUrl())
		}
		if n := len(got.versions); n > len(r.GetResources()) {
			t.Errorf("%d versions of %d resources", n, len(r.GetResources()))
		}
		takeAndGiveUp(t, got.update)
	})
}

// takeAndGiveUp has a store take u, show it, and give up all that it then holds: nothing may be left.
func takeAndGiveUp(t *testing.T, u Update) {
	t.Helper()
	s := NewStore()
	s.Apply(u)
	if _, err := json.Marshal(s.Dump()); err != nil {
		t.Errorf("dump: %v", err)
	}
	var gone Update
	for name := range s.workloads {
		gone.RemoveAddresses = append(gone.RemoveAddresses, name)
	}
	for key := range s.services {
		gone.RemoveAddresses = append(gone.RemoveAddresses, key.String())
	}
	for key := range s.policies {
		gone.RemovePolicies = append(gone.RemovePolicies, key)
	}
	s.Apply(gone)
	wantNew(t, s)
}
