// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-mesh/sluice/internal/securityapi"
)

// livePolicy is a policy as an API server has it, with this spec and these annotations.
func livePolicy(t *testing.T, kind, spec, annotations string) *unstructured.Unstructured {
	t.Helper()
	object := map[string]any{}
	text := "apiVersion: security.istio.io/v1\nkind: " + kind + "\nmetadata: {name: p, namespace: shop, annotations: " + annotations + "}\nspec: " + spec
	if err := yaml.Unmarshal([]byte(text), &object); err != nil {
		t.Fatal(err)
	}
	return &unstructured.Unstructured{Object: object}
}

// sent are the policies that ztunnels are told of once the set holds this one.
func sent(t *testing.T, policy *unstructured.Unstructured) ([]*securityapi.Authorization, error) {
	t.Helper()
	s := NewSet(Rules{}, slog.New(slog.DiscardHandler))
	err := s.Put(policy)
	s.Publish()
	m := mesh{clusterID: "c", trustDomain: "cluster.local", rootNamespace: "istio-system", dnsDomain: "cluster.local"}
	return m.translate(s.Snapshot()).policies, err
}

// A mistake in a policy of the API lets nobody in: it is as good as a policy that lets in fewer.
func TestAMistakeInAPolicyLetsNobodyIn(t *testing.T) {
	const (
		web     = `{from: [{source: {namespaces: [web]}}]}`
		prefix  = `{from: [{source: {principals: ["spiffe://cluster.local/ns/shop/sa/web"]}}]}`
		range33 = `{source: {ipBlocks: [10.0.0.0/33]}}`
	)
	for name, test := range map[string]struct {
		spec, as    string
		annotations string
		mistake     string
	}{
		"ALLOW without a good rule":                 {spec: `{rules: [` + prefix + `]}`, as: `{}`, mistake: "rules[0]"},
		"ALLOW with one bad rule":                   {spec: `{rules: [` + web + `, ` + prefix + `]}`, as: `{rules: [` + web + `]}`, mistake: "rules[1]"},
		"ALLOW of an empty list":                    {spec: `{rules: [{from: []}]}`, as: `{}`, mistake: "list is empty"},
		"ALLOW of an empty source":                  {spec: `{rules: [{from: [{source: {}}]}]}`, as: `{}`, mistake: "names no attribute"},
		"ALLOW of an unknown field":                 {spec: `{rules: [` + web + `, {from: [{source: {planets: [mars]}}]}]}`, as: `{rules: [` + web + `]}`, mistake: "planets"},
		"ALLOW keeps its selector":                  {spec: `{selector: {matchLabels: {app: a}}, rules: [` + prefix + `]}`, as: `{selector: {matchLabels: {app: a}}}`, mistake: "rules[0]"},
		"DENY keeps its good rules":                 {spec: `{action: DENY, rules: [` + web + `, {from: [` + range33 + `], to: [{operation: {ports: ["80"]}}]}]}`, as: `{action: DENY, rules: [` + web + `, {to: [{operation: {ports: ["80"]}}]}]}`, mistake: "10.0.0.0/33"},
		"DENY keeps good attributes":                {spec: `{action: DENY, rules: [{from: [{source: {namespaces: [web], ipBlocks: [10.0.0.0/33]}}]}]}`, as: `{action: DENY, rules: [` + web + `]}`, mistake: "10.0.0.0/33"},
		"DENY of one bad among many":                {spec: `{action: DENY, rules: [{from: [{source: {namespaces: [web]}}, ` + range33 + `]}]}`, as: `{action: DENY, rules: [{}]}`, mistake: "10.0.0.0/33"},
		"DENY but for a bad address":                {spec: `{action: DENY, rules: [{from: [{source: {namespaces: [web], notIpBlocks: [x]}}]}]}`, as: `{action: DENY, rules: [` + web + `]}`, mistake: `"x"`},
		"DENY when bad":                             {spec: `{action: DENY, rules: [{when: [{key: source.ip, values: [x]}, {key: destination.port, values: ["80"]}]}]}`, as: `{action: DENY, rules: [{when: [{key: destination.port, values: ["80"]}]}]}`, mistake: `"x"`},
		"DENY of a bad port and a method":           {spec: `{action: DENY, rules: [{to: [{operation: {methods: [DELETE], ports: ["8080-8090"]}}]}]}`, as: `{action: DENY, rules: [{}]}`, mistake: "8080-8090"},
		"DENY of a bad address and a claim":         {spec: `{action: DENY, rules: [{from: [{source: {notRequestPrincipals: ["*"], ipBlocks: [10.0.0.0/33]}}], to: [{operation: {ports: ["80"]}}]}]}`, as: `{action: DENY, rules: [{to: [{operation: {ports: ["80"]}}]}]}`, mistake: "10.0.0.0/33"},
		"DENY of a method, and a mistake beside it": {spec: `{action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}], from: [{source: {namespaces: [web], ipBlocks: [10.0.0.0/33]}}]}]}`, as: `{action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}], from: [{source: {namespaces: [web]}}]}]}`, mistake: "10.0.0.0/33"},
		"DENY of nothing at all":                    {spec: `{action: DENY, rules: [null]}`, as: `{action: DENY, rules: [{}]}`, mistake: "has no value"},
		"an action nobody knows":                    {spec: `{action: ASK, rules: [` + web + `]}`, as: `{}`, mistake: "ASK"},
		"an action by its number":                   {spec: `{action: 1, rules: [{from: [` + range33 + `]}]}`, as: `{}`, mistake: "10.0.0.0/33"},
		"a field nobody knows":                      {spec: `{selector: {matchLabels: {app: a}}, audience: x, rules: [` + web + `]}`, as: `{selector: {matchLabels: {app: a}}}`, mistake: "audience"},
		"a selector nobody knows":                   {spec: `{selector: {matchNames: [a]}, rules: [` + web + `]}`, as: `{}`, mistake: "matchNames"},
		"a dry run, perhaps":                        {spec: `{rules: [` + web + `]}`, annotations: `{istio.io/dry-run: maybe}`, as: `{rules: [` + web + `]}`, mistake: "maybe"},
	} {
		t.Run(name, func(t *testing.T) {
			if test.annotations == "" {
				test.annotations = "{}"
			}
			want, err := sent(t, livePolicy(t, "AuthorizationPolicy", test.as, "{}"))
			if err != nil || len(want) != 1 {
				t.Fatalf("the policy that it is to be like: %d policies, %v", len(want), err)
			}
			got, err := sent(t, livePolicy(t, "AuthorizationPolicy", test.spec, test.annotations))
			if !slices.EqualFunc(got, want, func(a, b *securityapi.Authorization) bool { return proto.Equal(a, b) }) {
				t.Errorf("sent %v\nwant %v", got, want)
			}
			if err == nil || !strings.Contains(err.Error(), test.mistake) {
				t.Errorf("mistake is %v, want one that names %s", err, test.mistake)
			}
		})
	}
}

// What only another proxy could carry out is that proxy's, whatever else is wrong with it.
func TestAPolicyOfAnotherProxyIsNobodys(t *testing.T) {
	for _, spec := range []string{
		`{action: CUSTOM, provider: {name: x}, rules: []}`,
		`{targetRefs: [{kind: Gateway, name: w}], rules: [{from: [{source: {ipBlocks: [x]}}]}]}`,
		`{targetRef: {kind: Gateway, name: w}}`,
	} {
		if got, err := sent(t, livePolicy(t, "AuthorizationPolicy", spec, "{}")); len(got) != 0 || err == nil {
			t.Errorf("%s: %v sent, error %v; want none, and an error", spec, got, err)
		}
	}
}

func TestAMistakeInAPeerAuthenticationDemandsMTLS(t *testing.T) {
	want, err := sent(t, livePolicy(t, "PeerAuthentication", `{mtls: {mode: STRICT}}`, "{}"))
	if err != nil || len(want) == 0 {
		t.Fatalf("%d policies, %v", len(want), err)
	}
	for _, spec := range []string{`{mtls: {mode: MOSTLY}}`, `{mtls: {mode: PERMISSIVE}, portLevelMtls: {"80": {mode: STRICT}}}`} {
		got, err := sent(t, livePolicy(t, "PeerAuthentication", spec, "{}"))
		if err == nil || !slices.EqualFunc(got, want, func(a, b *securityapi.Authorization) bool { return proto.Equal(a, b) }) {
			t.Errorf("%s: error %v, sent %v\nwant %v", spec, err, got, want)
		}
	}
}

// What a mended policy said does not linger, and what it says without effect is logged once.
func TestAMendedPolicyIsAsItIsWritten(t *testing.T) {
	var log bytes.Buffer
	s := NewSet(Rules{}, slog.New(slog.NewTextHandler(&log, nil)))
	bad := livePolicy(t, "AuthorizationPolicy", `{rules: [{from: [{source: {ipBlocks: [x]}}]}]}`, "{}")
	seven := livePolicy(t, "AuthorizationPolicy", `{action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}`, "{}")
	if s.Put(bad) == nil {
		t.Fatal("no error for a bad policy")
	}
	for range 2 {
		if err := s.Put(seven); err != nil {
			t.Fatal(err)
		}
	}
	s.Publish()
	if snap := s.Snapshot(); len(snap.Errors) != 0 || len(snap.Warnings) != 1 {
		t.Errorf("errors %v, warnings %v; want no error, and one warning", snap.Errors, snap.Warnings)
	}
	if n := strings.Count(log.String(), "only a waypoint sees these"); n != 1 {
		t.Errorf("logged %d times, want once:\n%s", n, log.String())
	}
}
