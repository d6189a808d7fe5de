// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"iter"
	"slices"
	"strings"
)

// alias is a host name that a client may mean.
type alias struct {
	name string
	// canonical is the name asked for without a search suffix, which is what the answer is about; "" if that is the name
	// asked for.
	canonical string
}

// aliases lists what a client in a namespace may mean by a name, best first: the name itself, then the name without a
// suffix that its resolver appended from the search list of a pod, each also as short for a Kubernetes service.
//
//	web                           web.<ns>.svc.<domain>
//	web.shop                      web.shop.svc.<domain>
//	db.example.com.<ns>.svc...    db.example.com
func (r *Resolver) aliases(namespace, name string) []alias {
	list := r.withFull(nil, namespace, alias{name: name})
	for _, suffix := range []string{namespace + ".svc." + r.Domain, "svc." + r.Domain, r.Domain} {
		if under(name, suffix) {
			bare := strings.TrimSuffix(name, "."+suffix)
			list = r.withFull(list, namespace, alias{name: bare, canonical: bare})
		}
	}
	return list
}

// withFull appends a and what it is short for.
func (r *Resolver) withFull(list []alias, namespace string, a alias) []alias {
	list = appendNew(list, a)
	full := ""
	switch labels := strings.Split(a.name, "."); {
	case len(labels) == 1:
		full = a.name + "." + namespace + ".svc." + r.Domain
	case len(labels) == 2:
		full = a.name + ".svc." + r.Domain
	case len(labels) == 3 && labels[2] == "svc":
		full = a.name + "." + r.Domain
	default:
		return list
	}
	if a.canonical != "" {
		a.canonical = full
	}
	return appendNew(list, alias{full, a.canonical})
}

func appendNew(list []alias, a alias) []alias {
	if slices.ContainsFunc(list, func(b alias) bool { return b.name == a.name }) {
		return list
	}
	return append(list, a)
}

// wildcards yields a name and then the wildcard host names that match it, the narrowest first.
func wildcards(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		if !yield(name) {
			return
		}
		for {
			_, parent, ok := strings.Cut(name, ".")
			if !ok || parent == "" || !yield("*."+parent) {
				return
			}
			name = parent
		}
	}
}
