// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// Offsets from a server's port to the haproxy's in front of it: in the client's pod, and on the wire.
const (
	haproxyIn   = 10000
	haproxyWire = 20000
)

const haproxyConf = `global
    maxconn %[1]d
    ssl-default-bind-options ssl-min-ver TLSv1.3
    ssl-default-server-options ssl-min-ver TLSv1.3
    ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
    ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256
    tune.ssl.cachesize 100000
defaults
    mode tcp
    timeout connect 5s
    timeout client 10m
    timeout server 10m
    maxconn %[1]d
`

// startHaproxies puts a haproxy into each plain pod: TCP to TLS 1.3 in the client's, TLS to TCP in the server's, both
// with certificates of one CA, as sidecars would be. That spares them the way to a proxy outside the pod.
func (b *bench) startHaproxies() error {
	home := b.pairDir()
	base := fmt.Sprintf(haproxyConf, (b.files-500)/2)
	client, server := base, base
	for _, port := range pairPorts {
		client += fmt.Sprintf("listen c%[1]d\n    bind 127.0.0.1:%[2]d\n    server s %[3]s:%[4]d ssl crt %[5]s/client.pem ca-file %[5]s/ca.pem verify required verifyhost server\n",
			port, haproxyIn+port, b.pserver.Addr4, haproxyWire+port, home)
		server += fmt.Sprintf("listen s%[1]d\n    bind :%[2]d ssl crt %[3]s/server.pem ca-file %[3]s/ca.pem verify required\n    server s 127.0.0.1:%[1]d\n",
			port, haproxyWire+port, home)
	}
	for _, p := range []struct {
		name, ns, conf string
		port           int
	}{{"haproxy-server", b.pserver.NS, server, haproxyWire}, {"haproxy-client", b.pclient.NS, client, haproxyIn}} {
		path := filepath.Join(home, p.name+".cfg")
		if err := os.WriteFile(path, []byte(p.conf), 0o644); err != nil {
			return err
		}
		if _, err := b.Start(p.ns, p.name, sbin("haproxy"), "-db", "-f", path); err != nil {
			return err
		}
		if err := b.waitListening(p.ns, p.port+httpPort, p.port+iperfPort); err != nil {
			return err
		}
	}
	return nil
}
