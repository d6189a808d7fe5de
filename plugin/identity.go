// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// identity is who the runtime says the sandbox is. The zero value is a sandbox that is no Kubernetes pod.
type identity struct {
	Namespace string
	Name      string
	UID       string
}

func (id identity) String() string { return id.Namespace + "/" + id.Name }

// IsPod tells whether Kubernetes knows the sandbox.
func (id identity) IsPod() bool { return id != identity{} }

// uidForm keeps a uid usable as the name of a pin: a UUID, or the hash of a static pod.
var uidForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$`)

// nameForm is what a pod's name can be: a DNS subdomain as RFC 1123 has it.
var nameForm = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)

// parseArgs finds the pod in CNI_ARGS, whose order changes from call to call and which may carry more than we read.
//
// A sandbox with half an identity is refused: it cannot be told whether it belongs into the mesh.
func parseArgs(args string) (identity, error) {
	var id identity
	fields := map[string]*string{
		"K8S_POD_NAMESPACE": &id.Namespace,
		"K8S_POD_NAME":      &id.Name,
		"K8S_POD_UID":       &id.UID,
	}
	for pair := range strings.SplitSeq(args, ";") {
		key, value, ok := strings.Cut(pair, "=")
		if field := fields[key]; field != nil {
			if !ok || *field != "" && *field != value {
				return identity{}, argsError("%s is given twice or without a value", key)
			}
			*field = value
		}
	}
	if !id.IsPod() {
		return id, nil
	}
	switch {
	case !label.MatchString(id.Namespace):
		return identity{}, argsError("K8S_POD_NAMESPACE: %q is not the name of a namespace", id.Namespace)
	case !nameForm.MatchString(id.Name):
		return identity{}, argsError("K8S_POD_NAME: %q is not the name of a pod", id.Name)
	case id.UID != "" && !uidForm.MatchString(id.UID):
		return identity{}, argsError("K8S_POD_UID: %q is not a uid", id.UID)
	}
	return id, nil
}

func argsError(format string, a ...any) error {
	return types.NewError(types.ErrInvalidEnvironmentVariables, "sluice-cni: CNI_ARGS: "+fmt.Sprintf(format, a...), "")
}
