// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
)

// headers collects PREFIX<name>=<value> for the metadata of gRPC calls. Names become lower case, as metadata has them.
func (s *settings) headers(prefix string, environ []string) map[string]string {
	headers := map[string]string{}
	for _, entry := range environ {
		variable, value, _ := strings.Cut(entry, "=")
		name, ok := strings.CutPrefix(variable, prefix)
		if !ok {
			continue
		}
		name = strings.ToLower(name)
		if err := checkHeader(name, value); err != nil {
			s.errs = append(s.errs, fmt.Errorf("environment %s: %w", variable, err))
			continue
		}
		headers[name] = value
	}
	return headers
}

// checkHeader holds metadata to what gRPC can send; values are not printed, since they may be secrets.
func checkHeader(name, value string) error {
	if name == "" || strings.HasPrefix(name, "grpc-") || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
		return fmt.Errorf("%q is no name of gRPC metadata: want letters, digits, -, _ and ., not beginning with grpc-", name)
	}
	for i := range len(value) {
		if value[i] < ' ' || value[i] > '~' {
			return fmt.Errorf("the value of %q has a character that is not printable ASCII", name)
		}
	}
	return nil
}
