// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// Offsets from a server's port to the nginx's in front of it: in the client's pod, and on the wire.
const (
	nginxIn   = 12000
	nginxWire = 22000
)

// streamModule is where Debian's libnginx-mod-stream puts it; other builds of nginx have it inside.
const streamModule = "/usr/lib/nginx/modules/ngx_stream_module.so"

const nginxPairConf = `daemon off;
user root;
worker_processes auto;
pid %[1]s/%[2]s.pid;
error_log stderr;
events { worker_connections %[3]d; }
stream {
    tcp_nodelay on;
    ssl_protocols TLSv1.3;
    ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
    proxy_ssl_protocols TLSv1.3;
    proxy_ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
    ssl_session_cache shared:pair:16m;
%[4]s}
`

// startNginxPair puts an nginx beside each haproxy, with the same work, certificates and cipher, and as many workers as
// there are cores, which haproxy has as threads.
func (b *bench) startNginxPair() error {
	home := b.pairDir()
	var client, server string
	for _, port := range pairPorts {
		client += fmt.Sprintf("    server { listen 127.0.0.1:%[1]d backlog=4096; proxy_pass %[2]s:%[3]d; proxy_ssl on; proxy_ssl_verify on; proxy_ssl_name server;"+
			" proxy_ssl_trusted_certificate %[4]s/ca.pem; proxy_ssl_certificate %[4]s/client.pem; proxy_ssl_certificate_key %[4]s/client.pem; }\n",
			nginxIn+port, b.pserver.Addr4, nginxWire+port, home)
		server += fmt.Sprintf("    server { listen %[1]d ssl backlog=4096; ssl_certificate %[2]s/server.pem; ssl_certificate_key %[2]s/server.pem;"+
			" ssl_client_certificate %[2]s/ca.pem; ssl_verify_client on; proxy_pass 127.0.0.1:%[3]d; }\n",
			nginxWire+port, home, port)
	}
	load := ""
	if _, err := os.Stat(streamModule); err == nil {
		load = "load_module " + streamModule + ";\n"
	}
	for _, p := range []struct {
		name, ns, servers string
		port              int
	}{{"pair-nginx-server", b.pserver.NS, server, nginxWire}, {"pair-nginx-client", b.pclient.NS, client, nginxIn}} {
		conf := filepath.Join(home, p.name+".conf")
		// A worker needs two connections for each one it carries, and the kernel may give one worker all of them.
		text := load + fmt.Sprintf(nginxPairConf, home, p.name, 2*idleConns+1000, p.servers)
		if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
			return err
		}
		if _, err := b.Start(p.ns, p.name, sbin("nginx"), "-p", home, "-c", conf, "-e", "stderr"); err != nil {
			return err
		}
		if err := b.waitListening(p.ns, p.port+httpPort, p.port+iperfPort); err != nil {
			return err
		}
	}
	return nil
}
