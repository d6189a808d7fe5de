// SPDX-License-Identifier: Apache-2.0

// Package manifests has nothing but tests of the manifests beside it: each overlay and the chart are rendered by the real
// kustomize and helm, read strictly into Kubernetes' own types, and held against each other and against the binaries.
package manifests
