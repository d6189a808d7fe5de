// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/sluice-mesh/sluice/internal/workloadapi"
)

const (
	strictButOnePort = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: mtls, namespace: demo}\n" +
		"spec: {selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}}}\n"
	plainStrict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: mtls, namespace: demo}\n" +
		"spec: {selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}}\n"
	exceptKey   = "demo/" + convertedPrefix + "mtls"
	labelledPod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: demo, labels: {app: a}}\n"
)

// denyPolicy picks pod a and refuses another namespace's pods.
func denyPolicy(name string) string {
	return fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: %s, namespace: demo}\n"+
		"spec: {action: DENY, selector: {matchLabels: {app: a}}, rules: [{from: [{source: {namespaces: [other]}}]}]}\n", name)
}

// wantNoneMissing checks that every policy which a workload names is held.
func (c *client) wantNoneMissing() {
	c.t.Helper()
	for name := range c.held[typeAddress] {
		var a workloadapi.Address
		if err := proto.Unmarshal(c.values[name], &a); err != nil {
			c.t.Fatal(err)
		}
		for _, policy := range a.GetWorkload().GetAuthorizationPolicies() {
			if c.held[typeAuthorization][policy] == "" {
				c.t.Errorf("%s names %s, which the client does not hold: it is unprotected", name, policy)
			}
		}
	}
}

// policiesOf are those that the client's workload names.
func (c *client) policiesOf(uid string) []string {
	c.t.Helper()
	var a workloadapi.Address
	if err := proto.Unmarshal(c.values[uid], &a); err != nil {
		c.t.Fatal(err)
	}
	return a.GetWorkload().GetAuthorizationPolicies()
}

// gone is a policy that goes once no workload names it; the static one stays as long as there is any PeerAuthentication.
func gone(policy string) string {
	if policy == strictKey {
		return ""
	}
	return policy
}

// follow takes responses, checking each, until the workload names policy and another one is gone.
func (c *client) follow(uid, policy, gone string) {
	c.t.Helper()
	for !slices.Equal(c.policiesOf(uid), []string{policy}) || c.held[typeAuthorization][gone] != "" {
		r := c.receive()
		c.wantNoneMissing()
		c.ack(r)
	}
}

// One policy takes another's place while a client listens: at no moment is the pod without both.
func TestXDSMakesBeforeItBreaks(t *testing.T) {
	for name, test := range map[string]struct {
		before, after       string
		beforeKey, afterKey string
	}{
		"port exception taken back": {strictButOnePort, plainStrict, exceptKey, strictKey},
		"port exception added":      {plainStrict, strictButOnePort, strictKey, exceptKey},
		"denial renamed":            {denyPolicy("old"), denyPolicy("new"), "demo/old", "demo/new"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlane(t, map[string]string{"pod.yaml": labelledPod, "policy.yaml": test.before})
			if err := WriteWorkload(p.workloads, runningPod("a", "node1", "10.0.0.1")); err != nil {
				t.Fatal(err)
			}
			p.Reload()
			c := p.dial()
			c.subscribe(typeAuthorization)
			c.ack(c.receive())
			c.subscribe(typeAddress)
			c.ack(c.receive())
			c.wantNoneMissing()
			p.write("policy.yaml", test.after)
			c.follow(podUID, test.afterKey, gone(test.beforeKey))

			// The same while the client was away: what it holds is named by the workloads it holds.
			p.stop()
			p.write("policy.yaml", test.before)
			p.start()
			again := p.dial()
			again.held, again.values = c.held, c.values
			again.subscribe(typeAuthorization)
			again.subscribe(typeAddress)
			again.follow(podUID, test.beforeKey, gone(test.afterKey))
		})
	}
}
