// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// Node is who we are to the control plane.
type Node struct {
	InstanceIP string // address of our own pod; empty means 1.1.1.1
	PodName    string
	Namespace  string
	NodeName   string
	ClusterID  string
	Network    string
	// Metadata is added to the above, and wins over it.
	Metadata map[string]any
}

// MetadataFromEnv collects node metadata from an environment: ISTIO_META_X as text, ISTIO_METAJSON_X as JSON.
func MetadataFromEnv(environ []string) (map[string]any, error) {
	metadata := map[string]any{}
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if key, ok := strings.CutPrefix(name, "ISTIO_META_"); ok {
			metadata[key] = value
		}
		if key, ok := strings.CutPrefix(name, "ISTIO_METAJSON_"); ok {
			var parsed any
			if err := json.Unmarshal([]byte(value), &parsed); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			metadata[key] = parsed
		}
	}
	return metadata, nil
}

// proto is ambient section 5.1.
func (n Node) proto() (*corev3.Node, error) {
	ip := cmp.Or(n.InstanceIP, "1.1.1.1")
	fields := map[string]any{
		"NAME":         n.PodName,
		"NAMESPACE":    n.Namespace,
		"INSTANCE_IPS": ip,
		"NODE_NAME":    n.NodeName,
		"CLUSTER_ID":   n.ClusterID,
		"NETWORK":      n.Network,
	}
	for key, value := range n.Metadata {
		fields[key] = value
	}
	metadata, err := structpb.NewStruct(fields)
	if err != nil {
		return nil, fmt.Errorf("node metadata: %w", err)
	}
	return &corev3.Node{
		Id:       fmt.Sprintf("ztunnel~%s~%s.%s~%s.svc.cluster.local", ip, n.PodName, n.Namespace, n.Namespace),
		Metadata: metadata,
	}, nil
}
