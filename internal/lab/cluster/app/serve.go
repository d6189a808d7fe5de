// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// drain is how long open requests may take once the pod is to end.
const drain = 5 * time.Second

// serve returns when ctx is done and open requests have ended.
func serve(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("serve", flag.ExitOnError)
	web := f.String("http", "", "address")
	plain := f.String("tcp", "", "address")
	rpc := f.String("grpc", "", "address")
	if err := f.Parse(args); err != nil {
		return err
	}
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	failed := make(chan error, 3)
	var stops []func()
	start := func(addr string, run func(net.Listener) error, stop func()) error {
		if addr == "" {
			return nil
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		stops = append(stops, stop)
		go func() { failed <- run(l) }()
		return nil
	}
	h := &http.Server{Handler: handler(name), ReadHeaderTimeout: time.Minute}
	if err := start(*web, h.Serve, func() { shutdown(h) }); err != nil {
		return err
	}
	if err := start(*plain, func(l net.Listener) error { return echo(l, name) }, func() {}); err != nil {
		return err
	}
	g := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(g, health.NewServer())
	if err := start(*rpc, g.Serve, g.GracefulStop); err != nil {
		return err
	}
	fmt.Println("serving")
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	for _, stop := range stops {
		stop()
	}
	return nil
}

func shutdown(h *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	_ = h.Shutdown(ctx) // what takes longer is cut
}

func handler(name string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, name, r.RemoteAddr) })
	return mux
}

// echo says who it is, then repeats what it is told.
func echo(l net.Listener, name string) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			fmt.Fprintln(c, name, c.RemoteAddr())
			_, _ = io.Copy(c, c)
		}()
	}
}
