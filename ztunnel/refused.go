// SPDX-License-Identifier: Apache-2.0

package main

import "fmt"

// refused are settings of the reference that ask for what this ztunnel does not do, unless they have their usual value.
// To run as if they had not been set would be a surprise later.
var refused = []struct{ variable, usual, reason string }{
	{"ENABLE_PROXY", "true", "a ztunnel that carries nothing has no use here"},
	{"PROXY_MODE", "shared", "one ztunnel serves all pods of a node; a dedicated one per workload is not provided"},
	{"PROXY_WORKLOAD_INFO", "", "it belongs to the dedicated mode, which is not provided"},
	{"XDS_ON_DEMAND", "false", "all workloads are asked for at once, since DNS and capture need them"},
	{"FAKE_CA", "false", "there is no made-up authority; set CA_ADDRESS"},
	{"UNSTABLE_ENABLE_SOCKS5", "false", "there is no SOCKS5 listener"},
}

func declareRefused(s *settings) {
	for _, r := range refused {
		if v := s.getenv(r.variable); v != "" && v != r.usual {
			err := fmt.Errorf("environment %s: %q is not supported: %s", r.variable, v, r.reason)
			s.errs = append(s.errs, err)
		}
	}
}
