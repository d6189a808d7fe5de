// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"

	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	grpcPort uint16 = 7500 + iota
	websocketPort
)

const (
	grpcStreams  = 8   // side by side on one connection
	grpcMessages = 100 // each way on each stream
	messageBytes = 20_000
)

// echoMessages sends each message back until the client has ended its direction, and ends the stream with a status.
func echoMessages(_ any, stream grpc.ServerStream) error {
	for {
		var m wrapperspb.BytesValue
		if err := stream.RecvMsg(&m); err == io.EOF {
			return status.Error(codes.DataLoss, "said at the end")
		} else if err != nil {
			return err
		}
		if err := stream.SendMsg(&m); err != nil {
			return err
		}
	}
}

// TestGRPC has bidirectional streams side by side on one HTTP/2 connection; the status, which is in trailers, comes too.
func TestGRPC(t *testing.T) {
	t.Parallel()
	p := enter(t)
	server := grpc.NewServer(grpc.UnknownServiceHandler(echoMessages))
	listener := p.listen(grpcPort)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	p.overBoth(grpcPort, 1, func(t *testing.T, to netip.AddrPort) {
		client, err := grpc.NewClient("passthrough:///"+to.String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return p.Dial(ctx, p.client.NS, addr) }))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = client.Close() }()
		ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
		defer cancel()
		errs := make(chan error, grpcStreams)
		for range grpcStreams {
			go func() { errs <- converse(ctx, client) }()
		}
		for range grpcStreams {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	})
}

// converse waits for the echo of each message before it sends the next, which differs.
func converse(ctx context.Context, client *grpc.ClientConn) error {
	stream, err := client.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/sluice.test.Echo/Talk")
	if err != nil {
		return err
	}
	for i := range grpcMessages {
		want := randomBytes(i * messageBytes / grpcMessages)
		if err := stream.SendMsg(wrapperspb.Bytes(want)); err != nil {
			return fmt.Errorf("message %d: %w", i, err)
		}
		var got wrapperspb.BytesValue
		if err := stream.RecvMsg(&got); err != nil {
			return fmt.Errorf("message %d: %w", i, err)
		}
		if !bytes.Equal(got.Value, want) {
			return fmt.Errorf("message %d: got %d bytes, or others than the %d sent", i, len(got.Value), len(want))
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if err := stream.RecvMsg(&wrapperspb.BytesValue{}); status.Code(err) != codes.DataLoss || status.Convert(err).Message() != "said at the end" {
		return fmt.Errorf("at the end: got %v, want the server's status", err)
	}
	return nil
}

// TestWebSocket upgrades a connection, on which the server then speaks first.
func TestWebSocket(t *testing.T) {
	t.Parallel()
	p := enter(t)
	server := &http.Server{Handler: websocket.Handler(func(c *websocket.Conn) {
		_ = websocket.Message.Send(c, "hello")
		for {
			var m []byte
			if websocket.Message.Receive(c, &m) != nil || websocket.Message.Send(c, m) != nil {
				return
			}
		}
	})}
	listener := p.listen(websocketPort)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	p.overBoth(websocketPort, 1, func(t *testing.T, to netip.AddrPort) {
		raw, err := p.DialTimeout(p.client.NS, to.String(), effect)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = raw.Close() }()
		config, err := websocket.NewConfig("ws://"+to.String()+"/", "http://"+to.String()+"/")
		if err != nil {
			t.Fatal(err)
		}
		c, err := websocket.NewClient(config, raw)
		if err != nil {
			t.Fatal(err)
		}
		var hello string
		if err := websocket.Message.Receive(c, &hello); err != nil || hello != "hello" {
			t.Fatalf("got %q, %v, want hello", hello, err)
		}
		for _, size := range []int{0, 1, 125, 126, 65_535, 65_536, 1 << 20} { // RFC 6455 section 5.2: lengths of 7, 16 and 64 bits
			want, got := randomBytes(size), []byte(nil)
			if err := websocket.Message.Send(c, want); err != nil {
				t.Fatalf("message of %d bytes: %v", size, err)
			}
			if err := websocket.Message.Receive(c, &got); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("message of %d bytes: got %d, or others: %v", size, len(got), err)
			}
		}
	})
}

// listen opens a port of the server's pod until the test ends.
func (p *place) listen(port uint16) net.Listener {
	p.t.Helper()
	l, err := p.Listen(p.server.NS, fmt.Sprintf("[::]:%d", port))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = l.Close() })
	return l
}
