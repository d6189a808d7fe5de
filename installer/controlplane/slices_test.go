// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// An address in two slices of a service, each for some of its ports, has all of them.
func TestSlicesThatShareAnAddressAddUp(t *testing.T) {
	s := NewSet(Rules{}, nil)
	put := func(object any) {
		t.Helper()
		if err := s.Put(object); err != nil {
			t.Fatal(err)
		}
	}
	want := map[uint32]uint32{5432: 15432, 9187: 19187}
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "db", Namespace: "shop"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.9"}}
	for name, port := range map[string]int32{"sql": 5432, "metrics": 9187} {
		service.Spec.Ports = append(service.Spec.Ports, corev1.ServicePort{Name: name, Port: port})
		target := port + 10000
		put(&discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: "db-" + name, Namespace: "shop", Labels: map[string]string{discoveryv1.LabelServiceName: "db"}},
			AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.7"}}},
			Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &target}},
		})
	}
	put(service)
	s.Publish()
	m := mesh{clusterID: "c", trustDomain: "cluster.local", rootNamespace: "istio-system", dnsDomain: "cluster.local"}
	workloads := m.translate(s.Snapshot()).workloads
	if len(workloads) != 1 {
		t.Fatalf("%d workloads, want one for the one address", len(workloads))
	}
	got := map[uint32]uint32{}
	for _, p := range workloads[0].Services["shop/db.shop.svc.cluster.local"].GetPorts() {
		got[p.ServicePort] = p.TargetPort
	}
	if len(got) != 2 || got[5432] != want[5432] || got[9187] != want[9187] {
		t.Errorf("ports %v, want %v", got, want)
	}
}
