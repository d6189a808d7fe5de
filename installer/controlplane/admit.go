// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

type nodeKey struct{}

// callerNode is the node whose ztunnel calls.
func callerNode(ctx context.Context) (string, bool) {
	node, ok := ctx.Value(nodeKey{}).(string)
	return node, ok
}

// admit returns a context that knows the caller's node.
func (s *Server) admit(ctx context.Context, method string) (context.Context, error) {
	var node string
	token, err := bearer(ctx)
	if err == nil {
		node, err = s.cfg.Remote.Admit(ctx, token)
	}
	if err != nil {
		s.cfg.Counters.CallersRefused.Add(1)
		s.log.Warn("caller refused", "method", method, "error", err)
		if _, ok := status.FromError(err); ok {
			return nil, err
		}
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	return context.WithValue(ctx, nodeKey{}, node), nil
}

// bearer is the token of ambient section 7: "authorization: Bearer TOKEN".
func bearer(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	for _, value := range md.Get("authorization") {
		if token, ok := strings.CutPrefix(value, "Bearer "); ok && token != "" {
			return token, nil
		}
	}
	return "", status.Error(codes.Unauthenticated, "no bearer token: callers prove who they are by a service account token of audience istio-ca")
}

func (s *Server) admitUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	ctx, err := s.admit(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

func (s *Server) admitStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, err := s.admit(stream.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	return handler(srv, admittedStream{stream, ctx})
}

type admittedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s admittedStream) Context() context.Context { return s.ctx }
