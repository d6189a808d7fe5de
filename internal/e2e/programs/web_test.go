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
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/internal/lab"
)

const (
	nginxPort uint16 = 7400 + iota
	nginxHTTP2Port
	haproxyPort
	haproxyClientPort
	haproxyEchoPort
)

const (
	// pages are fetched one after another over one connection, or side by side in HTTP/2 streams.
	pages     = 8
	pageBytes = 4<<20 + 3
)

const nginxConf = `daemon off;
user root;
worker_processes 1;
pid %[1]s/pid;
error_log stderr;
events { worker_connections 1024; }
http {
    access_log off;
    client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi;
    uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
    sendfile on;
    sendfile_max_chunk 1m;
    tcp_nopush on;
    keepalive_requests 1000000;
    root %[1]s/root;
    server { listen %[2]d; listen [::]:%[2]d; }
    server { listen %[3]d http2; listen [::]:%[3]d http2; }
}
`

// nginx serves pages 0, 1 and so on, and returns the folder they are in.
func (p *place) nginx() (root string) {
	p.t.Helper()
	home := p.t.TempDir()
	root = filepath.Join(home, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		p.t.Fatal(err)
	}
	for i := range pages {
		randomFile(p.t, root, strconv.Itoa(i), pageBytes)
	}
	writeFile(p.t, root, "small", "a page\n")
	conf := writeFile(p.t, home, "conf", fmt.Sprintf(nginxConf, home, nginxPort, nginxHTTP2Port))
	p.serve(p.server, "nginx", nginxPort, "nginx", "-p", home, "-c", conf, "-e", "stderr")
	return root
}

// fetchAll has curl fetch all pages, compares them, and returns what curl says of each.
func (p *place) fetchAll(t *testing.T, root string, to netip.AddrPort, options ...string) (said []string) {
	t.Helper()
	dir := t.TempDir()
	argv := append([]string{"curl", "-sS", "--fail", "-w", "%{http_version} %{num_connects} %{size_download}\n"}, options...)
	for i := range pages {
		argv = append(argv, "-o", filepath.Join(dir, strconv.Itoa(i)), fmt.Sprintf("http://%s/%d", to, i))
	}
	out := p.run(t, append(argv, "--globoff")...)
	for i := range pages {
		sameFiles(t, filepath.Join(dir, strconv.Itoa(i)), filepath.Join(root, strconv.Itoa(i)))
	}
	return strings.Split(strings.TrimSpace(out), "\n")
}

// TestNginx fetches files that nginx sends with sendfile, over one connection that is kept, and then has wrk load it.
func TestNginx(t *testing.T) {
	t.Parallel()
	p := enter(t)
	root := p.nginx()
	t.Run("keep-alive", func(t *testing.T) {
		p := &place{p.world, t}
		p.overBoth(nginxPort, 1, func(t *testing.T, to netip.AddrPort) {
			for i, said := range p.fetchAll(t, root, to) {
				if want := fmt.Sprintf("1.1 %d %d", map[bool]int{true: 1}[i == 0], pageBytes); said != want {
					t.Errorf("page %d (version, new connections, bytes): got %q, want %q", i, said, want)
				}
			}
		})
	})
	t.Run("load", func(t *testing.T) {
		p := &place{p.world, t}
		p.overBoth(nginxPort, 16, func(t *testing.T, to netip.AddrPort) {
			out := p.run(t, "wrk", "-t", "1", "-c", "16", "-d", "2s", fmt.Sprintf("http://%s/small", to))
			wantAll(t, "wrk", out, "requests in")
			if strings.Contains(out, "Non-2xx") || strings.Contains(out, "Socket errors") || strings.Contains(out, " 0 requests in") {
				t.Errorf("wrk: %s", out)
			}
		})
	})
	t.Run("HTTP2", func(t *testing.T) {
		p := &place{p.world, t}
		p.overBoth(nginxHTTP2Port, 1, func(t *testing.T, to netip.AddrPort) {
			p.multiplexed(t, root, to)
		})
	})
}

// multiplexed fetches all pages at once, in streams of one HTTP/2 connection, with Go's client: curl 7.88 breaks off where
// a connection without TLS is to carry a second request, without a mesh too.
func (p *place) multiplexed(t *testing.T, root string, to netip.AddrPort) {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &protocols, MaxConnsPerHost: 1, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		return p.Dial(ctx, p.client.NS, addr)
	}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: commandTimeout}
	errs := make(chan error, pages)
	for i := range pages {
		go func() {
			errs <- fetch(client, fmt.Sprintf("http://%s/%d", to, i), filepath.Join(root, strconv.Itoa(i)))
		}()
	}
	for range pages {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// fetch wants a file over HTTP/2.
func fetch(client *http.Client, url, file string) error {
	want, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	r, err := client.Get(url)
	if err != nil {
		return err
	}
	defer func() { _ = r.Body.Close() }()
	got, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK || r.ProtoMajor != 2 || !bytes.Equal(got, want) {
		return fmt.Errorf("%s: %s %s, %d bytes, or others than the %d of the file: %v", url, r.Proto, r.Status, len(got), len(want), err)
	}
	return nil
}

const haproxyConf = `global
    stats socket %[1]s/stats level admin
defaults
    mode tcp
    option splice-auto
    option splice-request
    option splice-response
    timeout connect 5s
    timeout client 2m
    timeout server 2m
listen through
    bind %[2]s
    server s %[3]s
`

// haproxy runs one in a pod, which splices what comes to bind on to an address, and returns how much it did.
func (p *place) haproxy(pod *lab.Pod, name string, port uint16, bind, to string) (spliced func(*testing.T) int64) {
	p.t.Helper()
	home := p.t.TempDir()
	conf := writeFile(p.t, home, "conf", fmt.Sprintf(haproxyConf, home, bind, to))
	p.serve(pod, "haproxy-"+name, port, "haproxy", "-db", "-f", conf)
	return func(t *testing.T) int64 {
		t.Helper()
		c, err := net.Dial("unix", filepath.Join(home, "stats"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(effect))
		fmt.Fprintln(c, "show info")
		all, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		var n int64
		text := string(all)
		_, rest, _ := strings.Cut(text, "TotalSplic") // some versions misspell what follows
		_, rest, _ = strings.Cut(rest, ": ")
		if _, err := fmt.Sscan(rest, &n); err != nil {
			t.Fatalf("spliced bytes: %v in\n%s", err, text)
		}
		return n
	}
}

// TestHAProxy has one haproxy in each pod: in front of the mesh and behind it. Both splice.
//
//	client ── haproxy ═══ mTLS ═══ haproxy ── echo
func TestHAProxy(t *testing.T) {
	t.Parallel()
	p := enter(t)
	echo, err := p.Listen(p.server.NS, fmt.Sprintf("127.0.0.1:%d", haproxyEchoPort))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = echo.Close() })
	go echoAll(echo)
	behind := p.haproxy(p.server, "server", haproxyPort, fmt.Sprintf(":::%d v4v6", haproxyPort), echo.Addr().String())
	p.overBoth(haproxyPort, 1, func(t *testing.T, to netip.AddrPort) {
		p := &place{p.world, t}
		local := fmt.Sprintf("127.0.0.1:%d", haproxyClientPort)
		before, done := p.haproxy(p.client, "client-"+strconv.Itoa(to.Addr().BitLen()), haproxyClientPort, local, to.String()), behind(t)
		if err := p.echoed(local, blockBytes); err != nil {
			t.Fatal(err)
		}
		// How much of it depends on when segments come; none would mean that the test shows nothing.
		for name, n := range map[string]int64{"client": before(t), "server": behind(t) - done} {
			if n == 0 {
				t.Errorf("haproxy in the %s's pod spliced nothing", name)
			}
		}
	})
}
