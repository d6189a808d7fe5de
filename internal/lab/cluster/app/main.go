// SPDX-License-Identifier: Apache-2.0

// Command app is the only file of the tests' image: the pause container of every pod, and with arguments
//
//	app serve [-http ADDR] [-tcp ADDR] [-grpc ADDR]   says who it is and who asks: "NAME ADDRESS:PORT"; NAME is the host's;
//	                                        gRPC is only the health service. HTTP answers /healthz, too
//	app get [-timeout D] URL                prints the answer
//	app ask [-timeout D] ADDR               the same over TCP
//	app load [-for D] [-every D] URL        asks over new connections; prints a line of JSON; fails if one request did
//	app true                                ends well, for probes
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	commands := map[string]func(context.Context, []string) error{"serve": serve, "get": get, "ask": ask, "load": load, "true": succeed}
	if len(os.Args) < 2 {
		<-ctx.Done()
		return
	}
	f := commands[os.Args[1]]
	if f == nil {
		f = func(context.Context, []string) error { return errors.New("no such command") }
	}
	if err := f(ctx, os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "app %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

func succeed(context.Context, []string) error { return nil }
