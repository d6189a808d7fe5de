// SPDX-License-Identifier: Apache-2.0

// Package securityapi holds the istio.security messages: L4 authorization policies as an ambient control plane sends them.
package securityapi

//go:generate ../../internal/protoc.sh authorization.proto
