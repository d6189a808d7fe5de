// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestAddressesOfTheGone: an address is known as a mesh workload's for a moment after its last one, and captured, unless
// somebody else has it.
func TestAddressesOfTheGone(t *testing.T) {
	remove := func(names ...string) (u Update) {
		for _, name := range names {
			u.RemoveAddresses = append(u.RemoveAddresses, "Kubernetes//Pod/shop/"+name)
		}
		return u
	}
	put := func(name, addr string, edits ...func(*Workload)) Update {
		return Update{Workloads: []*Workload{pod(name, addr, edits...)}}
	}
	behind := func(w *Workload) { plain(w); w.Waypoint = &Gateway{Hostname: web} }
	onNode := func(w *Workload) { w.HostNetwork = true }
	for _, test := range []struct {
		name     string
		updates  []Update
		want     string // whose 10.0.0.1 was
		captured bool
	}{
		{"never anybody's", nil, "", false},
		{"in use", []Update{put("a", "10.0.0.1")}, "", true},
		{"removed", []Update{put("a", "10.0.0.1"), remove("a")}, "shop/a", true},
		{"another address instead", []Update{put("a", "10.0.0.1"), put("a", "10.0.0.2")}, "shop/a", true},
		{"none any more", []Update{put("a", "10.0.0.1"), put("a", "")}, "shop/a", true},
		{"changed otherwise", []Update{put("a", "10.0.0.1"), put("a", "10.0.0.1", unhealthy)}, "", true},
		{"outside the mesh", []Update{put("a", "10.0.0.1", plain), remove("a")}, "", false},
		{"left the mesh, then removed", []Update{put("a", "10.0.0.1"), put("a", "10.0.0.1", plain), remove("a")}, "", false},
		{"outside it, behind a waypoint", []Update{put("a", "10.0.0.1", behind), remove("a")}, "", false},
		{"of the node", []Update{put("a", "10.0.0.1", onNode), remove("a")}, "", false},
		{"another's in the same update", []Update{put("a", "10.0.0.1"), {Workloads: put("b", "10.0.0.1", plain).Workloads, RemoveAddresses: remove("a").RemoveAddresses}}, "", false},
		{"another's before", []Update{put("a", "10.0.0.1"), put("b", "10.0.0.1", plain), remove("a")}, "", false},
		{"another's later", []Update{put("a", "10.0.0.1"), remove("a"), put("b", "10.0.0.1", plain)}, "", false},
		{"both removed", []Update{put("a", "10.0.0.1"), put("b", "10.0.0.1"), remove("a", "b")}, "shop/b", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testGone(t, test.updates, test.want, test.captured) })
		})
	}
}

func testGone(t *testing.T, updates []Update, want string, captured bool) {
	s, addr := NewStore(), netip.MustParseAddr("10.0.0.1")
	s.RememberGone()
	for _, u := range updates {
		s.Apply(u)
	}
	isCaptured := func() bool {
		addrs := s.CaptureAddrs("")
		return len(addrs) > 0 && addrs[0] == addr
	}
	time.Sleep(goneTime - time.Second) // of the bubble's clock
	if got := s.Gone("", addr); got != want {
		t.Errorf("it was %q's, want %q", got, want)
	}
	if s.Gone("", netip.MustParseAddr("::ffff:10.0.0.1")) != want || s.Gone("far", addr) != "" {
		t.Error("the mapped address, or another network's, is taken for something else")
	}
	if got := isCaptured(); got != captured {
		t.Errorf("captured: %v, want %v", got, captured)
	}
	sub := s.Subscribe()
	defer sub.Close()
	time.Sleep(time.Hour)
	s.mu.RLock()
	if len(s.gone) > 0 || s.goneTimer {
		t.Errorf("left behind: %v, timer %t", s.gone, s.goneTimer)
	}
	s.mu.RUnlock()
	if got := sub.Take(); got != (Change{Addresses: want != ""}) {
		t.Errorf("told of %+v; somebody's it was: %v", got, want != "")
	}
	if want != "" && isCaptured() {
		t.Error("still captured")
	}
}

// TestServicesOfTheGone: a service's address stays captured for a moment after its last workload in the mesh, and after itself.
func TestServicesOfTheGone(t *testing.T) {
	all := func(names ...string) (u Update) { u.RemoveAddresses = names; return u }
	const a, b = "Kubernetes//Pod/shop/a", "Kubernetes//Pod/shop/b"
	for _, test := range []struct {
		name     string
		b        func(*Workload)
		then     []Update
		captured bool
	}{
		{"a pod of two removed", nil, []Update{all(a)}, true},
		{"both removed", nil, []Update{all(a), all(b)}, true},
		{"one outside the mesh stays", plain, []Update{all(a)}, true},
		{"the service removed", nil, []Update{all(web.String())}, true},
		{"the service first", nil, []Update{all(web.String()), all(a, b)}, true},
		{"the pods first", nil, []Update{all(a, b), all(web.String())}, true},
		{"all at once", nil, []Update{all(a, b, web.String())}, true},
		{"left the mesh", plain, []Update{{Workloads: []*Workload{pod("a", "10.0.0.1", inService(web, nil), plain)}}}, false},
		{"left the mesh, then removed", plain, []Update{{Workloads: []*Workload{pod("a", "10.0.0.1", inService(web, nil), plain)}}, all(a, b, web.String())}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := NewStore()
				s.RememberGone()
				edits := []func(*Workload){inService(web, nil)}
				if test.b != nil {
					edits = append(edits, test.b)
				}
				s.Apply(Update{
					Workloads: []*Workload{pod("a", "10.0.0.1", inService(web, nil)), pod("b", "10.0.0.2", edits...)},
					Services:  []*Service{service(web, "10.1.0.1")},
				})
				for _, u := range test.then {
					s.Apply(u)
				}
				vip := netip.MustParseAddr("10.1.0.1")
				time.Sleep(goneTime - time.Second) // of the bubble's clock
				if got := slices.Contains(s.CaptureAddrs(""), vip); got != test.captured {
					t.Errorf("captured: %v, want %v", got, test.captured)
				}
				if got := s.Gone("", vip); s.Service(web) == nil && (got == web.String()) != test.captured {
					t.Errorf("it was %q's", got)
				}
				time.Sleep(time.Hour)
				if inMesh := test.name == "a pod of two removed"; slices.Contains(s.CaptureAddrs(""), vip) != inMesh {
					t.Errorf("captured for ever: %v, want %v", !inMesh, inMesh)
				}
			})
		})
	}
}

// TestGoneMayHaveLeft: a control plane that tells of the mesh alone takes away what leaves it, and that may live on.
func TestGoneMayHaveLeft(t *testing.T) {
	s := NewStore()
	s.Apply(Update{Workloads: []*Workload{pod("a", "10.0.0.1")}})
	s.Apply(Update{RemoveAddresses: []string{"Kubernetes//Pod/shop/a"}})
	if got := s.Gone("", netip.MustParseAddr("10.0.0.1")); got != "" || len(s.CaptureAddrs("")) > 0 || s.goneTimer {
		t.Errorf("remembered as %q's, want not at all", got)
	}
}
