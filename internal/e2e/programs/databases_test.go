// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"crypto/md5"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	postgresPort uint16 = 5432
	mariadbPort  uint16 = 3306
	redisPort    uint16 = 6379
)

// rows is how many lines a server is asked for: the checksums of the numbers from 1 on.
const rows = 100_000

func wantRows(t *testing.T, got string) {
	t.Helper()
	var want strings.Builder
	for i := range rows {
		fmt.Fprintf(&want, "%x\n", md5.Sum(fmt.Append(nil, i+1)))
	}
	if got != want.String() {
		t.Errorf("got %d bytes, or others than the %d of the checksums", len(got), want.Len())
	}
}

// as has a server run under a user of the system.
func as(name string, argv ...string) []string {
	return append([]string{"setpriv", "--reuid=" + name, "--regid=" + name, "--init-groups"}, argv...)
}

// TestPostgres runs pgbench, which keeps books: after it, what was moved must be what was booked.
func TestPostgres(t *testing.T) {
	t.Parallel()
	p := enter(t)
	home := homeOf(t, "postgres")
	data := filepath.Join(home, "data")
	must(t, as("postgres", program(t, "initdb"), "-D", data, "-A", "trust", "--no-sync", "-E", "UTF8", "--no-locale")...)
	writeFile(t, data, "pg_hba.conf", "host all all all trust\n")
	if err := os.Chmod(filepath.Join(data, "pg_hba.conf"), 0o644); err != nil {
		t.Fatal(err)
	}
	p.serve(p.server, "postgres", postgresPort, as("postgres", program(t, "postgres"), "-D", data, "-k", home,
		"-c", "listen_addresses=*", "-c", "fsync=off", "-c", fmt.Sprintf("port=%d", postgresPort))...)
	const clients, each = 8, 50
	p.overBoth(postgresPort, clients+2, func(t *testing.T, to netip.AddrPort) {
		target := []string{"-h", to.Addr().String(), "-p", fmt.Sprint(to.Port()), "-U", "postgres"}
		with := func(name string, args ...string) string {
			return p.run(t, append(append([]string{name}, target...), args...)...)
		}
		with("pgbench", "-i", "-q", "postgres")
		out := with("pgbench", "-c", fmt.Sprint(clients), "-j", "2", "-t", fmt.Sprint(each), "-M", "extended", "postgres")
		wantAll(t, "pgbench", out, fmt.Sprintf("actually processed: %d/%[1]d", clients*each), "failed transactions: 0")
		books := with("psql", "-AtX", "-c", `select count(*), sum(delta) = (select sum(abalance) from pgbench_accounts),
			sum(delta) = (select sum(bbalance) from pgbench_branches) from pgbench_history`, "postgres")
		if want := fmt.Sprintf("%d|t|t", clients*each); strings.TrimSpace(books) != want {
			t.Errorf("books: got %q, want %q", books, want)
		}
		wantRows(t, with("psql", "-AtX", "-c", fmt.Sprintf("select md5(i::text) from generate_series(1,%d) i order by i", rows), "postgres"))
	})
}

// TestMariaDB: the server speaks first, on every connection.
func TestMariaDB(t *testing.T) {
	t.Parallel()
	p := enter(t)
	home := homeOf(t, "mysql")
	data := filepath.Join(home, "data")
	must(t, "mariadb-install-db", "--no-defaults", "--user=mysql", "--datadir="+data, "--skip-test-db", "--auth-root-authentication-method=normal")
	p.serve(p.server, "mariadb", mariadbPort, "mariadbd", "--no-defaults", "--user=mysql", "--datadir="+data,
		"--socket="+filepath.Join(home, "socket"), "--pid-file="+filepath.Join(home, "pid"), fmt.Sprintf("--port=%d", mariadbPort),
		"--bind-address=*", "--skip-name-resolve", "--skip-grant-tables")
	const connections = 10
	p.overBoth(mariadbPort, connections+1, func(t *testing.T, to netip.AddrPort) {
		ask := func(query string) string {
			return p.run(t, "mariadb", "--no-defaults", "-h", to.Addr().String(), "-P", fmt.Sprint(to.Port()), "-u", "root", "-D", "mysql", "-N", "-B", "-e", query)
		}
		for i := range connections {
			if got, want := ask(fmt.Sprintf("select %d * 7", i)), fmt.Sprintf("%d\n", i*7); got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		}
		wantRows(t, ask(fmt.Sprintf("select md5(seq) from seq_1_to_%d order by seq", rows)))
	})
}

// TestRedis runs redis-benchmark with pipelining, and stores and fetches a large value.
func TestRedis(t *testing.T) {
	t.Parallel()
	p := enter(t)
	dir := t.TempDir()
	p.serve(p.server, "redis", redisPort, "redis-server", "--port", fmt.Sprint(redisPort), "--bind", "*", "-::*",
		"--protected-mode", "no", "--save", "", "--appendonly", "no", "--dir", dir)
	const clients = 50
	p.overBoth(redisPort, clients+2, func(t *testing.T, to netip.AddrPort) {
		host, port := to.Addr().String(), fmt.Sprint(to.Port())
		out := p.run(t, "redis-benchmark", "-h", host, "-p", port, "-n", "5000", "-c", fmt.Sprint(clients), "-P", "16", "-d", "512", "--csv",
			"-t", "ping_mbulk,set,get,lrange_100")
		wantAll(t, "redis-benchmark", out, `"SET"`, `"GET"`, `"LRANGE_100`)
		if strings.Contains(strings.ToLower(out), "error") {
			t.Errorf("redis-benchmark: %s", out)
		}
		value, back := randomFile(t, dir, "value", 16<<20), filepath.Join(dir, "back")
		const fetch = `set -e; redis-cli -h "$1" -p "$2" -x set value <"$3"; redis-cli -h "$1" -p "$2" --raw get value | head -c "$5" >"$4"`
		p.run(t, "sh", "-c", fetch, "sh", host, port, value, back, fmt.Sprint(16<<20))
		sameFiles(t, back, value)
	})
}
