// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	sshPort uint16 = 7600 + iota
	smtpPort
)

const sshdConf = `Port %[2]d
ListenAddress 0.0.0.0
ListenAddress ::
HostKey %[1]s/host
AuthorizedKeysFile %[1]s/user.pub
PidFile none
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UseDNS no
`

// TestRsyncOverSSH sends a tree there and fetches it back, and pipes bytes both ways at once through a remote cat.
func TestRsyncOverSSH(t *testing.T) {
	t.Parallel()
	p := enter(t)
	home := t.TempDir()
	for _, key := range []string{"host", "user"} {
		must(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(home, key))
	}
	conf := writeFile(t, home, "sshd", fmt.Sprintf(sshdConf, home, sshPort))
	// sshd wants a folder below /run that its service would make: it gets one in a mount namespace of its own.
	p.serve(p.server, "sshd", sshPort, "unshare", "--mount", "sh", "-c",
		`mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && exec "$0" -D -e -f "$1"`, program(t, "sshd"), conf)
	tree := filepath.Join(home, "tree")
	if err := os.MkdirAll(filepath.Join(tree, "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		randomFile(t, tree, fmt.Sprintf("below/%d", i), 10*i)
	}
	large := randomFile(t, tree, "large", 32<<20)
	p.overBoth(sshPort, 4, func(t *testing.T, to netip.AddrPort) {
		host := to.Addr().String()
		if to.Addr().Is6() {
			host = "[" + host + "]"
		}
		ssh := fmt.Sprintf("ssh -F none -p %d -i %s/user -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR", to.Port(), home)
		dir := t.TempDir()
		there, back := filepath.Join(dir, "there"), filepath.Join(dir, "back")
		p.run(t, "rsync", "-a", "-e", ssh, tree+"/", "root@"+host+":"+there+"/")
		p.run(t, "rsync", "-a", "-e", ssh, "root@"+host+":"+there+"/", back+"/")
		must(t, "diff", "-r", tree, back)
		// Nothing differs any more, which both sides must find from checksums alone.
		if out := p.run(t, "rsync", "-aci", "-e", ssh, tree+"/", "root@"+host+":"+there+"/"); strings.TrimSpace(out) != "" {
			t.Errorf("a second rsync would still send:\n%s", out)
		}
		piped := filepath.Join(dir, "piped")
		p.run(t, "sh", "-c", ssh+` "root@$1" cat <"$2" >"$3"`, "sh", to.Addr().String(), large, piped)
		sameFiles(t, piped, large)
	})
}

// TestSMTP has curl hand over a message. The server speaks first, and then answers line by line.
func TestSMTP(t *testing.T) {
	t.Parallel()
	p := enter(t)
	p.overBoth(smtpPort, 1, func(t *testing.T, to netip.AddrPort) {
		p := &place{p.world, t}
		dir := t.TempDir()
		box := filepath.Join(dir, "box")
		p.serve(p.server, "smtp-"+fmt.Sprint(to.Addr().BitLen()), smtpPort, "aiosmtpd", "-n",
			"-l", to.Addr().String()+":"+fmt.Sprint(to.Port()), "-c", "aiosmtpd.handlers.Mailbox", box)
		var body strings.Builder
		for i := range 20_000 {
			fmt.Fprintf(&body, "%s line %d\r\n", []string{"a", ".", "..", "From"}[i%4], i) // dots are doubled on the way
		}
		message := writeFile(t, dir, "message", "Subject: through the mesh\r\n\r\n"+body.String())
		p.run(t, "curl", "-sS", "--globoff", fmt.Sprintf("smtp://%s/client.mesh", to), "--mail-from", "client@mesh.test", "--mail-rcpt", "server@mesh.test", "--upload-file", message)
		found, _ := filepath.Glob(filepath.Join(box, "new", "*"))
		if len(found) != 1 {
			t.Fatalf("%d messages in the box, want 1", len(found))
		}
		text, err := os.ReadFile(found[0])
		if err != nil {
			t.Fatal(err)
		}
		_, got, _ := strings.Cut(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n\n")
		want := strings.ReplaceAll(body.String(), "\r\n", "\n")
		// A mailbox escapes what would begin a message in it, and ends each with a line.
		got = strings.ReplaceAll(got, "\n>From ", "\nFrom ")
		if strings.TrimSpace(got) != strings.TrimSpace(want) {
			t.Errorf("the message has %d bytes, or others than the %d sent", len(got), len(want))
		}
	})
}
