// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/internal/nodeapi"
	"github.com/sluice-mesh/sluice/internal/testutil"
)

// fullResult has every field of the 1.1.0 result, and two that no version has.
const fullResult = `{
	"cniVersion": "1.1.0",
	"interfaces": [
		{"name": "cni0", "mac": "02:00:00:00:00:01", "mtu": 9000},
		{"name": "veth0", "mac": "02:00:00:00:00:02", "mtu": 1450},
		{"name": "eth0", "mac": "02:00:00:00:00:03", "mtu": 1450, "sandbox": "/n", "socketPath": "/s", "pciID": "0000:00:1f.6", "ours": 1}],
	"ips": [
		{"interface": 2, "address": "10.1.0.5/16", "gateway": "10.1.0.1"},
		{"interface": 2, "address": "fd01::5/64", "gateway": "fd01::1"},
		{"interface": 0, "address": "10.1.0.1/16"}],
	"routes": [
		{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "advmss": 1360, "priority": 7, "table": 100, "scope": 253},
		{"dst": "::/0"}],
	"dns": {"nameservers": ["10.96.0.10"], "domain": "cluster.local", "search": ["svc.cluster.local"], "options": ["ndots:5"]},
	"vendor": {"big": 12345678901234567890, "empty": null}}`

// olderResult is what 0.3.1 and 0.4.0 have of it: no mtu of interfaces, an address has its version.
const olderResult = `{
	"cniVersion": "VERSION",
	"interfaces": [
		{"name": "cni0", "mac": "02:00:00:00:00:01"},
		{"name": "veth0", "mac": "02:00:00:00:00:02"},
		{"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/n"}],
	"ips": [
		{"version": "4", "interface": 2, "address": "10.1.0.5/16", "gateway": "10.1.0.1"},
		{"version": "6", "interface": 2, "address": "fd01::5/64", "gateway": "fd01::1"},
		{"version": "4", "interface": 0, "address": "10.1.0.1/16"}],
	"routes": [
		{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "advmss": 1360, "priority": 7, "table": 100, "scope": 253},
		{"dst": "::/0"}],
	"dns": {"nameservers": ["10.96.0.10"], "domain": "cluster.local", "search": ["svc.cluster.local"], "options": ["ndots:5"]}}`

func TestPrevResultComesBackUnchanged(t *testing.T) {
	v := func(s, version string) string { return strings.Replace(s, "VERSION", version, 1) }
	asIs := strings.Replace(fullResult, `"1.1.0"`, `"1.0.0"`, 1)
	for name, tc := range map[string]struct{ prev, version, want string }{
		"1.1.0":                      {fullResult, "1.1.0", fullResult},
		"1.0.0":                      {asIs, "1.0.0", asIs},
		"0.4.0":                      {v(olderResult, "0.4.0"), "0.4.0", v(olderResult, "0.4.0")},
		"0.3.1":                      {v(olderResult, "0.3.1"), "0.3.1", v(olderResult, "0.3.1")},
		"0.4.0 to 0.3.1":             {v(olderResult, "0.4.0"), "0.3.1", v(olderResult, "0.3.1")},
		"0.4.0 of the AWS VPC CNI":   {golden(t, "aws-vpc-cni.json", "/n"), "0.4.0", golden(t, "aws-vpc-cni.json", "/n")},
		"0.3.1 to 0.4.0":             {v(olderResult, "0.3.1"), "0.4.0", v(olderResult, "0.4.0")},
		"1.1.0 to 0.4.0":             {fullResult, "0.4.0", v(olderResult, "0.4.0")},
		"1.1.0 to 1.0.0":             {known(fullResult), "1.0.0", strings.Replace(known(fullResult), `"1.1.0"`, `"1.0.0"`, 1)},
		"0.4.0 to 1.1.0":             {v(olderResult, "0.4.0"), "1.1.0", v(withoutIPVersion(olderResult), "1.1.0")},
		"no version of its own":      {`{"ips":[{"version":"4","address":"10.0.0.2/24"}]}`, "0.3.1", `{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.0.0.2/24"}]}`},
		"empty version":              {`{"cniVersion":"","dns":{}}`, "1.0.0", `{"cniVersion":"1.0.0","dns":{}}`},
		"nothing but a version":      {`{"cniVersion":"1.1.0"}`, "1.1.0", `{"cniVersion":"1.1.0"}`},
		"0.2.0 to 0.3.1":             {`{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24","gateway":"10.0.0.1"}}`, "0.3.1", `{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.0.0.2/24","gateway":"10.0.0.1"}],"dns":{}}`},
		"empty lists are not absent": {`{"cniVersion":"1.0.0","interfaces":[],"ips":[],"routes":[]}`, "1.0.0", `{"cniVersion":"1.0.0","interfaces":[],"ips":[],"routes":[]}`},
	} {
		t.Run(name, func(t *testing.T) {
			prev, err := parsePrevResult(json.RawMessage(tc.prev), tc.version)
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := prev.PrintTo(&out); err != nil {
				t.Fatal(err)
			}
			wantSameJSON(t, out.Bytes(), []byte(tc.want))
		})
	}
}

// golden is a result as a plugin in the field makes it, for the network namespace at path.
func golden(t *testing.T, name, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(b), "NETNS", path)
}

// known drops the fields of fullResult that no version has.
func known(s string) string {
	s = strings.Replace(s, `, "ours": 1`, "", 1)
	return s[:strings.Index(s, ",\n\t\"vendor\"")] + "}"
}

func withoutIPVersion(s string) string {
	return strings.NewReplacer(`"version": "4", `, "", `"version": "6", `, "").Replace(s)
}

func wantSameJSON(t *testing.T, got, want []byte) {
	t.Helper()
	decode := func(b []byte) (v any) {
		d := json.NewDecoder(bytes.NewReader(b))
		d.UseNumber()
		if err := d.Decode(&v); err != nil {
			t.Fatalf("%v in %s", err, b)
		}
		return v
	}
	if !reflect.DeepEqual(decode(got), decode(want)) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestPrevResultRefusesWhatItCannotRead(t *testing.T) {
	for name, tc := range map[string]struct{ prev, want string }{
		"a string":           {`"x"`, `want an object, got string "x"`},
		"version is a list":  {`{"cniVersion":[]}`, `cniVersion: want a string, got array []`},
		"unknown version":    {`{"cniVersion":"7.0.0"}`, `unsupported CNI result version "7.0.0"`},
		"null interface":     {`{"interfaces":[{"name":"a"},null]}`, `interfaces[1] is null`},
		"null address":       {`{"ips":[null]}`, `ips[0] is null`},
		"null route":         {`{"routes":[null]}`, `routes[0] is null`},
		"ips is an object":   {`{"ips":{}}`, `cannot unmarshal object`},
		"no address at all":  {`{"ips":[{"address":"10.0.0.300/8"}]}`, `invalid CIDR address`},
		"address without":    {`{"ips":[{"gateway":"10.0.0.1"}]}`, `ips[0] has no address`},
		"route to nowhere":   {`{"routes":[{"gw":"10.0.0.1"}]}`, `routes[0] has no dst`},
		"interfaces a field": {`{"interfaces":[{"name":5}]}`, `cannot unmarshal number`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parsePrevResult(json.RawMessage(tc.prev), "1.0.0")
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
}

func TestInterfacesOfPrevResult(t *testing.T) {
	p := netip.MustParsePrefix
	for name, tc := range map[string]struct {
		prev string
		want []nodeapi.Interface
	}{
		"those in the sandbox": {fullResult, []nodeapi.Interface{{Name: "eth0", Addresses: []netip.Prefix{p("10.1.0.5/16"), p("fd01::5/64")}}}},
		"several": {`{"interfaces":[{"name":"a","sandbox":"/n"},{"name":"h"},{"name":"b","sandbox":"/n"},{"name":"a","sandbox":"/n"}],
			"ips":[{"interface":2,"address":"10.0.0.2/24"},{"interface":3,"address":"10.0.0.3/24"},{"interface":1,"address":"10.0.0.1/24"},{"address":"10.0.0.4/24"}]}`,
			[]nodeapi.Interface{
				{Name: "a", Addresses: []netip.Prefix{p("10.0.0.3/24"), p("10.0.0.4/24")}},
				{Name: "b", Addresses: []netip.Prefix{p("10.0.0.2/24")}}}},
		"none listed": {`{"ips":[{"address":"10.0.0.2/24"}]}`, []nodeapi.Interface{{Name: "eth7", Addresses: []netip.Prefix{p("10.0.0.2/24")}}}},
		"only the host's": {`{"interfaces":[{"name":"h"}],"ips":[{"interface":0,"address":"10.0.0.2/24"}]}`,
			[]nodeapi.Interface{{Name: "eth7", Addresses: []netip.Prefix{p("10.0.0.2/24")}}}},
		"an index out of range": {`{"interfaces":[{"name":"a","sandbox":"/n"}],"ips":[{"interface":9,"address":"10.0.0.2/24"},{"interface":-1,"address":"10.0.0.2/24"}]}`,
			[]nodeapi.Interface{{Name: "a"}}},
		"a sandbox that is no path": {golden(t, "aws-vpc-cni.json", "/n"), []nodeapi.Interface{{Name: "eth0", Addresses: []netip.Prefix{p("10.0.34.18/32")}}}},
		"another sandbox": {`{"interfaces":[{"name":"a","sandbox":"/m"},{"name":"b","sandbox":"/n"}],"ips":[{"address":"10.0.0.2/24"}]}`,
			[]nodeapi.Interface{{Name: "b", Addresses: []netip.Prefix{p("10.0.0.2/24")}}}},
		"none in this sandbox": {`{"interfaces":[{"name":"a","sandbox":"5"}],"ips":[{"interface":0,"address":"10.0.0.2/24"}]}`,
			[]nodeapi.Interface{{Name: "eth7", Addresses: []netip.Prefix{p("10.0.0.2/24")}}}},
	} {
		t.Run(name, func(t *testing.T) {
			prev, err := parsePrevResult(json.RawMessage(tc.prev), "1.1.0")
			if err != nil {
				t.Fatal(err)
			}
			got, elsewhere := prev.Interfaces("eth7", "/n")
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
			known := len(elsewhere)
			for _, i := range got {
				known += len(i.Addresses)
			}
			if known != len(prev.read.IPs) {
				t.Errorf("got %d addresses, want all %d", known, len(prev.read.IPs))
			}
		})
	}
}

// The AWS VPC CNI lists an interface that is nowhere. The pod must be enrolled all the same, by the one that is.
func TestAddAfterAPluginThatNotesToItself(t *testing.T) {
	l := newLab(t)
	s, pod := l.sandbox("mesh", "web")
	s.prev = golden(t, "aws-vpc-cni.json", pod.Path)
	o := l.cni("ADD", s, map[string]any{"cniVersion": "0.4.0"}).wantOK(t)
	wantSameJSON(t, []byte(o.stdout), []byte(s.prev))
	l.wantAttached(s.containerID)
	l.cni("CHECK", s, map[string]any{"cniVersion": "0.4.0"}).wantOK(t)
}

// A result may leave the addresses out, or hang them on the host's end. The pod has them all the same, and without one
// it would not be enrolled.
func TestAddKnowsAddressesThatPrevResultDoesNotGiveThePod(t *testing.T) {
	l := newLab(t)
	for name, tc := range map[string]struct {
		ips   string
		flush bool
		want  func(pod *testutil.Pod) []netip.Addr
	}{
		"none":          {`[]`, false, func(pod *testutil.Pod) []netip.Addr { return []netip.Addr{pod.Addr4, pod.Addr6} }},
		"the gateway's": {`[{"interface":0,"address":"10.77.0.1/24"}]`, false, func(pod *testutil.Pod) []netip.Addr { return []netip.Addr{pod.Addr4, pod.Addr6} }},
		"on the host's end, and the kernel has none": {`[{"interface":0,"address":"10.9.0.7/24"}]`, true,
			func(*testutil.Pod) []netip.Addr { return []netip.Addr{netip.MustParseAddr("10.9.0.7")} }},
		"on an interface that is not listed": {`[{"interface":9,"address":"10.9.0.7/24"}]`, true,
			func(*testutil.Pod) []netip.Addr { return []netip.Addr{netip.MustParseAddr("10.9.0.7")} }},
	} {
		t.Run(name, func(t *testing.T) {
			s, pod := l.sandbox("mesh", "web")
			if tc.flush {
				pod.Run(t, "ip", "addr", "flush", "dev", "eth0", "scope", "global")
			}
			s.prev = fmt.Sprintf(`{"cniVersion":"1.1.0","interfaces":[{"name":"h"},{"name":"eth0","sandbox":%q}],"ips":%s}`, pod.Path, tc.ips)
			l.agent.requests()
			o := l.cni("ADD", s, nil).wantOK(t)
			wantSameJSON(t, []byte(o.stdout), []byte(s.prev))
			l.detach(s.uid)
			l.cni("CHECK", s, nil).wantError(t, codeDamaged, "the pod is enrolled")
			want := fmt.Sprint(tc.want(pod))
			for _, r := range l.agent.requests() {
				if got := fmt.Sprint(r.Pod.Addresses()); got != want {
					t.Errorf("%s: got addresses %s, want %s", r.Verb, got, want)
				}
			}
		})
	}
}

// One namespace has many paths: /var/run is a link to /run, and /proc has one for each process and thread.
func TestSameNamespace(t *testing.T) {
	testutil.RequireRoot(t)
	ns, other := testutil.NetNS(t, "a"), testutil.NetNS(t, "b")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(filepath.Dir(ns.Path), link); err != nil {
		t.Fatal(err)
	}
	byLink := filepath.Join(link, filepath.Base(ns.Path))
	for _, tc := range []struct {
		sandbox string
		want    bool
	}{
		{ns.Path, true}, {byLink, true}, {other.Path, false}, {"", false}, {"5", false}, {filepath.Base(ns.Path), false},
		{"/nowhere", false}, {"/dev/null", false}, {filepath.Dir(ns.Path), false},
	} {
		if got := sameNamespace(tc.sandbox, ns.Path); got != tc.want {
			t.Errorf("%q: got %v, want %v", tc.sandbox, got, tc.want)
		}
	}
	if sameNamespace("", "") || !sameNamespace("/gone", "/gone") {
		t.Error("of paths that lead nowhere only the text counts, and an empty one is no path")
	}
}

func FuzzPrevResult(f *testing.F) {
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		f.Add([]byte(fullResult), version)
		f.Add([]byte(strings.Replace(olderResult, "VERSION", "0.4.0", 1)), version)
	}
	f.Add([]byte(`{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24","routes":[{"dst":"0.0.0.0/0"}]}}`), "1.0.0")
	f.Add([]byte(`{"Interfaces":[null],"IPS":[{"interface":99,"address":"::/0"}]}`), "1.0.0")
	f.Fuzz(func(t *testing.T, raw []byte, version string) {
		prev, err := parsePrevResult(raw, version)
		if err != nil {
			return
		}
		prev.Interfaces("eth0", "/n")
		var out bytes.Buffer
		if err := prev.PrintTo(&out); err != nil {
			return
		}
		if _, err := parsePrevResult(out.Bytes(), version); err != nil {
			t.Errorf("%s became %s, which is refused: %v", raw, out.Bytes(), err)
		}
	})
}
