// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

// maxMessageBytes is what one message of a control plane may have: all workloads of a large cluster come in one.
const maxMessageBytes = 200 << 20

// connectTimeout bounds the connection to a control plane, TLS included.
const connectTimeout = 5 * time.Second

// ControlPlane says how to reach a control plane's xDS or CA service, and how to prove who we are.
type ControlPlane struct {
	// Address is unix:///path, in clear: the socket's own permissions guard it. Or https://host:port; a bare host:port
	// means the same.
	Address string
	// RootCA says what the server's certificate must lead to: PEM text, or a file of it that is re-read for each
	// connection. Empty or "SYSTEM" means the system's roots. Unused for unix.
	RootCA string
	// ServerName, if not empty, is accepted in the server's certificate as well as Address's host, as the reference does.
	ServerName string
	// Token is the bearer token, or, if there is a slash in it, a file that is re-read for each call.
	// Empty means none. Unused for unix, where it would be readable on the way.
	Token string
	// ClusterID is sent as metadata "clusterid" unless empty.
	ClusterID string
	// Headers are further gRPC metadata; keys are lower case.
	Headers map[string]string
}

// Local tells whether the control plane is on this machine, behind a unix socket.
func (c ControlPlane) Local() bool { return strings.HasPrefix(c.Address, "unix:") }

// Validate returns an error unless Address can be dialled.
func (c ControlPlane) Validate() error {
	if c.Local() {
		_, err := c.socket()
		return err
	}
	_, err := c.hostPort()
	return err
}

func (c ControlPlane) socket() (string, error) {
	path := strings.TrimPrefix(strings.TrimPrefix(c.Address, "unix:"), "//")
	if !strings.HasPrefix(path, "/") {
		return "", fmt.Errorf("control plane address %q: want unix:///path", c.Address)
	}
	return path, nil
}

func (c ControlPlane) hostPort() (string, error) {
	target := strings.TrimSuffix(strings.TrimPrefix(c.Address, "https://"), "/")
	if host, port, err := net.SplitHostPort(target); err != nil || host == "" || port == "" || strings.Contains(target, "/") {
		return "", fmt.Errorf("control plane address %q: want unix:///path or https://host:port", c.Address)
	}
	return target, nil
}

// Dial returns a channel to the control plane. It does not connect yet: the first call does. The caller closes it.
func (c ControlPlane) Dial() (*grpc.ClientConn, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	options := []grpc.DialOption{
		// Not the environment's proxy, nor settings from DNS: the address is all there is to it.
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(),
		grpc.WithPerRPCCredentials(callCredentials{c}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)),
		// gRPC's own waits between connections stay short: those who call it wait themselves.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 2, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: connectTimeout,
		}),
	}
	if c.Local() {
		path, err := c.socket()
		if err != nil {
			return nil, err
		}
		return grpc.NewClient("unix://"+path, append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	}
	target, err := c.hostPort()
	if err != nil {
		return nil, err
	}
	return grpc.NewClient("dns:///"+target, append(options,
		grpc.WithTransportCredentials(credentials.NewTLS(c.tls(target))),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
	)...)
}

// tls verifies by hand so that the root file is read for each connection, and its rotation needs no restart.
func (c ControlPlane) tls(target string) *tls.Config {
	host, _, _ := net.SplitHostPort(target)
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         host,
		InsecureSkipVerify: true, // VerifyConnection does it
		VerifyConnection: func(state tls.ConnectionState) error {
			return c.verify(state, host)
		},
	}
}

func (c ControlPlane) verify(state tls.ConnectionState, host string) error {
	options := x509.VerifyOptions{DNSName: host, Intermediates: x509.NewCertPool()}
	var err error
	if options.Roots, err = c.roots(); err != nil {
		return fmt.Errorf("control plane root: %w", err)
	}
	if len(state.PeerCertificates) == 0 {
		return ErrNoCertificate
	}
	for _, cert := range state.PeerCertificates[1:] {
		options.Intermediates.AddCert(cert)
	}
	_, err = state.PeerCertificates[0].Verify(options)
	if err != nil && c.ServerName != "" {
		options.DNSName = c.ServerName
		if _, other := state.PeerCertificates[0].Verify(options); other == nil {
			return nil
		}
	}
	return err
}

func (c ControlPlane) roots() (*x509.CertPool, error) {
	if c.RootCA == "" || c.RootCA == "SYSTEM" {
		return x509.SystemCertPool()
	}
	text := []byte(c.RootCA)
	if !strings.Contains(c.RootCA, "-----BEGIN") {
		var err error
		if text, err = os.ReadFile(c.RootCA); err != nil {
			return nil, err
		}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("no PEM certificate in %.40q", c.RootCA)
	}
	return pool, nil
}

func (c ControlPlane) token() (string, error) {
	if !strings.Contains(c.Token, "/") {
		return c.Token, nil
	}
	text, err := os.ReadFile(c.Token)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(text))
	if token == "" {
		return "", fmt.Errorf("%s is empty", c.Token)
	}
	return token, nil
}

// callCredentials puts the metadata of a ControlPlane on each call.
type callCredentials struct{ ControlPlane }

func (c callCredentials) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	metadata := map[string]string{}
	for key, value := range c.Headers {
		metadata[key] = value
	}
	if c.ClusterID != "" {
		metadata["clusterid"] = c.ClusterID
	}
	if c.Token == "" || c.Local() {
		return metadata, nil
	}
	token, err := c.token()
	if err != nil {
		return nil, fmt.Errorf("bearer token: %w", err)
	}
	metadata["authorization"] = "Bearer " + token
	return metadata, nil
}

// RequireTransportSecurity keeps the token off anything but TLS and the local socket.
func (c callCredentials) RequireTransportSecurity() bool { return !c.Local() }
