// SPDX-License-Identifier: Apache-2.0

// Package kube has the Kubernetes API say what is in the mesh, and tells it what became of that.
//
//	API ── pods of this node, namespaces ──► Node ──► enroll
//	 ▲                                                  │
//	 └── annotation, events ◄────── Reporter ◄──────────┘
//
// Everything is compared over and over; a missed event, an outage of the API or a restart only costs time.
package kube

import (
	"fmt"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Connect reads a kubeconfig, or with an empty path what a pod is given of its service account. Nothing is sent yet.
func Connect(kubeconfig, agent string) (*rest.Config, error) {
	c, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubernetes API: %w (outside of a pod, --kubeconfig says where it is)", err)
	}
	c.UserAgent = agent
	// Namespaces and pods of a node come by one watch each; what is written is a patch per pod that changes.
	c.QPS, c.Burst = 50, 200
	return c, nil
}
