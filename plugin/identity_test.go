// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

func TestParseArgs(t *testing.T) {
	web := identity{Namespace: "shop", Name: "web-0", UID: "6ba7b810-9dad-11d1-80b4-00c04fd430c8"}
	for name, tc := range map[string]struct {
		args string
		want identity
	}{
		"as containerd sends it": {"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=" + web.UID, web},
		"another order":          {"K8S_POD_UID=" + web.UID + ";K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1;IgnoreUnknown=1;K8S_POD_NAMESPACE=shop", web},
		"more than we read":      {"MAC=aa=bb;;K8S_POD_NAMESPACE=shop;IP;K8S_POD_NAME=web-0;K8S_POD_UID=" + web.UID + ";", web},
		"the same twice":         {"K8S_POD_NAME=a;K8S_POD_NAME=a;K8S_POD_NAMESPACE=b", identity{Namespace: "b", Name: "a"}},
		"no uid":                 {"K8S_POD_NAME=web-0;K8S_POD_NAMESPACE=shop", identity{Namespace: "shop", Name: "web-0"}},
		"no Kubernetes":          {"IgnoreUnknown=true;FOO=bar", identity{}},
		"empty":                  {"", identity{}},
		"empty values":           {"K8S_POD_NAME=;K8S_POD_NAMESPACE=", identity{}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseArgs(tc.args)
			if err != nil || got != tc.want {
				t.Errorf("got %+v, %v, want %+v", got, err, tc.want)
			}
		})
	}
}

func TestParseArgsRefusesHalfAnIdentity(t *testing.T) {
	for name, tc := range map[string]struct{ args, want string }{
		"no namespace":       {"K8S_POD_NAME=web-0", `K8S_POD_NAMESPACE: "" is not the name of a namespace`},
		"no name":            {"K8S_POD_NAMESPACE=shop", `K8S_POD_NAME: "" is not the name of a pod`},
		"namespace and path": {"K8S_POD_NAMESPACE=../x;K8S_POD_NAME=a", `K8S_POD_NAMESPACE: "../x" is not the name of a namespace`},
		"uid and path":       {"K8S_POD_NAMESPACE=b;K8S_POD_NAME=a;K8S_POD_UID=../../x", `K8S_POD_UID: "../../x" is not a uid`},
		"two names":          {"K8S_POD_NAMESPACE=b;K8S_POD_NAME=a;K8S_POD_NAME=c", `K8S_POD_NAME is given twice`},
		"no value":           {"K8S_POD_NAMESPACE=b;K8S_POD_NAME", `K8S_POD_NAME is given twice or without a value`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseArgs(tc.args)
			e, ok := err.(*types.Error)
			if !ok || e.Code != types.ErrInvalidEnvironmentVariables || !strings.Contains(e.Msg, tc.want) {
				t.Errorf("got %#v, want code 4 and %s", err, tc.want)
			}
		})
	}
}
