// SPDX-License-Identifier: Apache-2.0

// Package hbone carries TCP streams in HTTP/2 CONNECT over mutual TLS: both ends and the client's connection pool.
//
// It knows no workloads and makes no policy: callers bring a [tls.Config], a way to dial, and a handler. Everything that
// is on the wire here is HTTP/2 (RFC 9113) and HPACK (RFC 7541), with plain CONNECT requests (RFC 9113, section 8.5).
//
// # How bytes move
//
//	app TCP ──read 256K──► one DATA frame ──► crypto/tls ──records──► wire: one write per batch ──► peer
//	app TCP ◄─one write─── block ≤128K ◄──decrypt in place── crypto/tls ◄── wire: 256K reads ◄───── peer
//
// Each connection has one goroutine that reads frames and never waits for a write, so two ends can never wait for each
// other. Received data waits in the stream, at most one stream window of it, and the window is given back only as the
// application takes the data: a slow reader slows its own sender and costs bounded memory.
//
// No connection or stream that is idle holds a buffer: readers wait for readability first and take a pooled one then.
package hbone
