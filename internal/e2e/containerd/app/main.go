// SPDX-License-Identifier: Apache-2.0

// Command app is the only file of the tests' image: the pause container of every pod, and with arguments a server that
// says its name, as testutil.Echo does.
//
//	app            waits for SIGTERM
//	app NAME ADDR  serves as NAME on ADDR until SIGTERM; prints "serving" when it listens
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	if len(os.Args) == 3 {
		l, err := net.Listen("tcp", os.Args[2])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go serve(l, os.Args[1])
		fmt.Println("serving")
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	<-ended
}

func serve(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go func() {
			defer c.Close()
			fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr())
			_, _ = io.Copy(c, c)
		}()
	}
}
