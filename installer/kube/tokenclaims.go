// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// maxToken is above what Kubernetes issues by far.
	maxToken = 16 << 10
	// clockSkew is by how much a token may have expired for this clock.
	clockSkew = time.Minute
)

// checkClaims refuses a token that says itself that it is no good, so that the API need not be asked about it. What it
// says is believed of nothing else: it has not been verified. Form: RFC 7519, section 3.
func checkClaims(token string, trusted []string) error {
	parts := strings.Split(token, ".")
	if len(token) > maxToken || len(parts) != 3 {
		return errors.New("the token is no service account token (RFC 7519)")
	}
	var claims struct {
		Subject  string          `json:"sub"`
		Audience json.RawMessage `json:"aud"`
		Expires  float64         `json:"exp"`
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err == nil {
		err = json.Unmarshal(payload, &claims)
	}
	if err != nil {
		return fmt.Errorf("the token is no service account token: %w", err)
	}
	name, ok := strings.CutPrefix(claims.Subject, "system:serviceaccount:")
	if !ok || !slices.Contains(trusted, strings.Replace(name, ":", "/", 1)) {
		return fmt.Errorf("%q is none of the node proxies' service accounts (%s)", claims.Subject, strings.Join(trusted, ", "))
	}
	var one string
	var all []string
	if json.Unmarshal(claims.Audience, &one) == nil {
		all = []string{one}
	} else if json.Unmarshal(claims.Audience, &all) != nil {
		all = nil
	}
	if !slices.Contains(all, TokenAudience) {
		return fmt.Errorf("the token is for audience %q, not %s", all, TokenAudience)
	}
	if time.Unix(int64(claims.Expires), 0).Add(clockSkew).Before(time.Now()) {
		return errors.New("the token has expired")
	}
	return nil
}
