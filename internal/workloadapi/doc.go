// SPDX-License-Identifier: Apache-2.0

// Package workloadapi holds the istio.workload messages: what an ambient control plane says of workloads and services.
package workloadapi

//go:generate ../../internal/protoc.sh workload.proto
