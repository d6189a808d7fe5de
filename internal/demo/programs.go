// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sluice-mesh/sluice/internal/lab"
)

// responseMarker is in the page that nginx serves; it must never be seen on the wire in clear.
const responseMarker = "sluice-demo-response-5d1c7e"

const nginxConf = `daemon off;
user root;
worker_processes 1;
pid %[1]s/nginx.pid;
error_log stderr;
events { worker_connections 4096; }
http {
    log_format who '$remote_addr $status $request_uri';
    access_log %[2]s who;
    client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi;
    uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
    keepalive_requests 1000000;
    server {
        listen %[3]d backlog=1024;
        listen [::]:%[3]d backlog=1024;
        location / { default_type text/plain; return 200 "%[4]s\n"; }
    }
}
`

// program is the path of one of our Python programs, as writePrograms put it there.
func (s *scene) program(name string) string { return filepath.Join(s.Dir, "programs", name) }

func (s *scene) writePrograms() error { return os.CopyFS(s.Dir, programs) }

// python prefers the distribution's interpreter over one that is first on PATH for developers.
func (s *scene) python() string {
	const distribution = "/usr/bin/python3"
	if _, err := os.Stat(distribution); err == nil {
		return distribution
	}
	return "python3"
}

// startNginx starts an nginx whose access log says who asked.
func (s *scene) startNginx(ns string) error {
	dir := filepath.Join(s.Dir, "nginx-"+ns)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, dir, s.accessLog(ns), httpPort, responseMarker), 0o644); err != nil {
		return err
	}
	_, err := s.Start(ns, "nginx-"+ns, sbin("nginx"), "-p", dir, "-c", conf, "-e", "stderr")
	return err
}

func (s *scene) accessLog(ns string) string {
	return filepath.Join(s.Logs(), "nginx-access-"+ns+".log")
}

func (s *scene) startIperf(ns string) error {
	_, err := s.Start(ns, "iperf3-"+ns, "iperf3", "-s", "-p", strconv.Itoa(iperfPort))
	return err
}

// sbin finds a command that may not be on a user's PATH.
func sbin(name string) string {
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return filepath.Join(dir, name)
		}
	}
	return name
}

// talk is a Python client that keeps one connection open and writes a line for every round trip.
type talk struct {
	*lab.Proc
	log string
}

// startTalk opens a connection from a pod and waits for its first round trip.
func (s *scene) startTalk(from *lab.Pod, name, host string) (*talk, error) {
	name = "talk-" + name
	t := &talk{log: s.LogPath(name)}
	var err error
	t.Proc, err = s.Start(from.NS, name, s.python(), s.program("talk.py"), host, strconv.Itoa(echoPort))
	if err != nil {
		return nil, err
	}
	return t, t.moreTicks(1)
}

// ticks counts the round trips so far and says how the connection broke, if it did.
func (t *talk) ticks() (n int, broken string) {
	data, err := os.ReadFile(t.log)
	if err != nil {
		return 0, err.Error()
	}
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "tick ") {
			n++
		} else if strings.HasPrefix(line, "broken ") {
			broken = strings.TrimSpace(line)
		}
	}
	return n, broken
}

// moreTicks waits for so many more round trips.
func (t *talk) moreTicks(more int) error {
	before, _ := t.ticks()
	return lab.Poll(talkTimeout, func() error {
		n, broken := t.ticks()
		if broken != "" {
			return fmt.Errorf("%s after %d round trips: %s", t.Name, n, broken)
		}
		if n < before+more {
			return fmt.Errorf("%s: %d round trips, want %d", t.Name, n, before+more)
		}
		return nil
	})
}

// command runs a program to its end inside a pod.
func (s *scene) command(p *lab.Pod, argv ...string) (string, error) {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		path = sbin(argv[0])
	}
	return s.Output(p.NS, commandTimeout, append([]string{path}, argv[1:]...)...)
}
