// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"encoding/json"
	"fmt"
	"maps"
)

// policyFields is an object of an API server as its JSON has it.
type policyFields = map[string]any

// acceptPolicy reads a policy of an API server. One that has a mistake is not what its author meant, whatever is made of
// it, so it is read such that the mistake lets nobody in: see [closedAuthorization] and [closedPeerAuthentication]. What
// it said before does not count, so that a replica which has just started has the same of it.
//
// Both results are there for a policy with a mistake. Nothing of it is in force if only another proxy could carry it out.
func acceptPolicy(key string, policy policyFields) (*objects, *FileError) {
	objs, mistake := parsePolicy(key, policy)
	if mistake == nil {
		return objs, nil
	}
	closed, effect := closedPeerAuthentication(policy), "it demands mTLS until that is mended"
	if policy["kind"] == "AuthorizationPolicy" {
		if isElsewhere(fieldsOf(policy["spec"])) {
			return &objects{}, mistake
		}
		closed, effect = closedAuthorization(key, policy)
	}
	objs, err := parsePolicy(key, closed)
	if err != nil {
		return &objects{}, err // a name or a kind that no API server admits
	}
	mistake.Err = fmt.Errorf("%w; %s", mistake.Err, effect)
	return objs, mistake
}

// isElsewhere: a waypoint's, or one that asks an authorizer which only other proxies can ask.
func isElsewhere(spec policyFields) bool {
	refs, _ := spec["targetRefs"].([]any)
	return spec["action"] == "CUSTOM" || spec["targetRef"] != nil || len(refs) > 0
}

// parsePolicy takes the way of a file, since a policy has no Go type whose decoder would complain of unknown fields.
func parsePolicy(key string, policy policyFields) (*objects, *FileError) {
	data, err := json.Marshal(policy)
	if err != nil {
		return nil, &FileError{Origin: Origin{Path: key}, Err: err}
	}
	objs, mistake := parseFile(key, data)
	if mistake != nil {
		mistake.Line = 0 // of the one line of its JSON
		return nil, mistake
	}
	for _, w := range objs.warnings {
		w.Line = 0
	}
	return objs, nil
}

// judge says whether a policy with this spec would be without a mistake.
type judge func(spec policyFields) bool

// closedAuthorization leaves of a policy what can be read, and says what becomes of the rest. A rule that has a mistake
// is left out of an ALLOW, which thus allows less, down to nothing; of a DENY's rule the conditions with the mistake are
// left out, which thus denies more. A policy of which not even the action or the selector can be read allows nothing, to
// all that may be meant.
func closedAuthorization(key string, policy policyFields) (closed policyFields, effect string) {
	closed = maps.Clone(policy)
	closed["spec"] = policyFields{}
	metadata := fieldsOf(policy["metadata"])
	if _, mistake := parsePolicy(key, closed); mistake != nil { // an annotation
		closed["metadata"] = withoutAnnotations(metadata)
	}
	// A policy may have tens of thousands of parts, each of which is judged: without all that its metadata may hold.
	part := maps.Clone(policy)
	part["metadata"] = policyFields{"name": metadata["name"], "namespace": metadata["namespace"]}
	good := func(spec policyFields) bool {
		part["spec"] = spec
		_, mistake := parsePolicy(key, part)
		return mistake == nil
	}
	spec := fieldsOf(policy["spec"])
	head := maps.Clone(spec)
	delete(head, "rules")
	_, named := head["action"].(string)
	if !good(head) || head["action"] != nil && !named {
		head, effect = policyFields{"selector": spec["selector"]}, "it allows nothing until that is mended"
		if !good(head) {
			head = policyFields{}
		}
	} else {
		effect = "rules with a mistake allow nothing until that is mended"
		if spec["action"] == "DENY" {
			effect = "rules with a mistake deny all that the rest of them matches until that is mended"
		}
		if rules := closedRules(spec, head, good); len(rules) > 0 {
			head["rules"] = rules
		}
	}
	closed["spec"] = head
	return closed, effect
}

func withoutAnnotations(metadata policyFields) policyFields {
	kept := maps.Clone(metadata)
	delete(kept, "annotations")
	return kept
}

// closedRules are those of a policy whose other fields, in head, are good.
func closedRules(spec, head policyFields, good judge) (kept []any) {
	rules, _ := spec["rules"].([]any)
	for _, rule := range rules {
		alone := maps.Clone(head)
		alone["rules"] = []any{rule}
		switch {
		case good(alone):
			kept = append(kept, rule)
		case spec["action"] == "DENY":
			kept = append(kept, wider(fieldsOf(rule), good))
		}
	}
	return kept
}

// l4Attributes are those of sources and operations that ztunnels match.
var l4Attributes = map[string]bool{
	"principals": true, "notPrincipals": true, "namespaces": true, "notNamespaces": true, "serviceAccounts": true,
	"notServiceAccounts": true, "ipBlocks": true, "notIpBlocks": true, "ports": true, "notPorts": true,
}

// wider leaves out of a rule what has a mistake: sources and operations attribute by attribute, conditions one by one. A
// list one of whose alternatives is left with nothing that is matched goes altogether, since that one might have been
// anybody.
func wider(rule policyFields, good judge) policyFields {
	ruleIsGood := func(r policyFields) bool { return good(policyFields{"action": "DENY", "rules": []any{r}}) }
	kept := policyFields{}
	for list, item := range map[string]string{"from": "source", "to": "operation"} {
		var all []any
		open := false
		entries, _ := rule[list].([]any)
		for _, entry := range entries {
			attributes := policyFields{}
			matched, written := false, fieldsOf(fieldsOf(entry)[item])
			for name, value := range written {
				if ruleIsGood(policyFields{list: []any{policyFields{item: policyFields{name: value}}}}) {
					attributes[name] = value
					matched = matched || l4Attributes[name]
				}
			}
			// As it is written, an alternative of L7 attributes alone matches nothing here, and opens nothing.
			open = open || len(attributes) == 0 || len(attributes) < len(written) && !matched
			all = append(all, policyFields{item: attributes})
		}
		if len(all) > 0 && !open {
			kept[list] = all
		}
	}
	var when []any
	conditions, _ := rule["when"].([]any)
	for _, condition := range conditions {
		if ruleIsGood(policyFields{"when": []any{condition}}) {
			when = append(when, condition)
		}
	}
	if len(when) > 0 {
		kept["when"] = when
	}
	return kept
}

// closedPeerAuthentication demands mTLS wherever the policy applies, or may have been meant to.
func closedPeerAuthentication(policy policyFields) policyFields {
	closed := maps.Clone(policy)
	closed["spec"] = policyFields{"selector": fieldsOf(policy["spec"])["selector"], "mtls": policyFields{"mode": "STRICT"}}
	if _, mistake := parsePolicy("", closed); mistake != nil {
		closed["spec"] = policyFields{"mtls": policyFields{"mode": "STRICT"}}
	}
	return closed
}

// fieldsOf is v if that is an object, or an empty one.
func fieldsOf(v any) policyFields {
	fields, _ := v.(policyFields)
	return fields
}
