// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1alpha1 "istio.io/api/security/v1alpha1"
)

// CA certifies keys.
type CA interface {
	// Sign has the key of a PEM certificate request certified for id. The answer is PEM: leaf first, then
	// intermediates, the roots in the last element. It is not trusted: the caller checks it.
	Sign(ctx context.Context, id Identity, csr string) ([]string, error)
}

// DefaultTTL is the lifetime asked for when none is given.
const DefaultTTL = 24 * time.Hour

// signTimeout bounds one call to the CA.
const signTimeout = 10 * time.Second

// CAClient is a CA behind Istio's CertificateService. Safe for concurrent use.
type CAClient struct {
	conn   *grpc.ClientConn
	client securityv1alpha1.IstioCertificateServiceClient
	ttl    time.Duration
}

// NewCAClient returns a client that asks for certificates of lifetime ttl; 0 means DefaultTTL.
// It connects with the first Sign. The caller closes it.
func NewCAClient(server ControlPlane, ttl time.Duration) (*CAClient, error) {
	conn, err := server.Dial()
	if err != nil {
		return nil, err
	}
	if ttl == 0 {
		ttl = DefaultTTL
	}
	return &CAClient{conn: conn, client: securityv1alpha1.NewIstioCertificateServiceClient(conn), ttl: ttl}, nil
}

// Close ends calls that are under way with an error.
func (c *CAClient) Close() error { return c.conn.Close() }

// Sign implements [CA]. The node's own account asks in the name of the pod's: that is what ImpersonatedIdentity says.
func (c *CAClient) Sign(ctx context.Context, id Identity, csr string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	response, err := c.client.CreateCertificate(ctx, &securityv1alpha1.IstioCertificateRequest{
		Csr:              csr,
		ValidityDuration: int64(c.ttl / time.Second),
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			"ImpersonatedIdentity": structpb.NewStringValue(id.String()),
		}},
	})
	if err != nil {
		return nil, err
	}
	return response.GetCertChain(), nil
}
