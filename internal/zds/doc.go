// SPDX-License-Identifier: Apache-2.0

// Package zds is the protocol by which the node agent drives ztunnel: messages, framing and both ends of the socket.
package zds

//go:generate ../../internal/protoc.sh zds.proto
