// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"strconv"
)

// startEchoes listens on idlePort in the servers' pods of all ways; stop closes the listeners.
func (b *bench) startEchoes() (stop func(), err error) {
	var listeners []net.Listener
	stop = func() {
		for _, l := range listeners {
			_ = l.Close()
		}
	}
	started := map[string]bool{}
	for _, w := range b.ways() {
		if started[w.serverNS] {
			continue
		}
		started[w.serverNS] = true
		l, err := b.Listen(w.serverNS, net.JoinHostPort("0.0.0.0", strconv.Itoa(idlePort)))
		if err != nil {
			stop()
			return nil, err
		}
		listeners = append(listeners, l)
		go echoAll(l)
	}
	return stop, nil
}

// echoAll answers each connection's bytes until the peer closes. Not io.Copy: that takes a pipe per connection.
func echoAll(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go echo(c)
	}
}

func echo(c net.Conn) {
	defer c.Close()
	buf := make([]byte, pingBytes)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}
