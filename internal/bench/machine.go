// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// pairsNote says what Sluice is compared with.
const pairsNote = "haproxy pair and nginx pair (stream module): TCP to TLS 1.3 (AES-128-GCM, both ends authenticated) to TCP, one proxy in each pod, " +
	"as many threads or workers as cores, else as they come. " +
	"ztunnel writes its access log, a line per connection; the pairs write none. direct: no proxy, no enrolment."

// machine describes what the figures were taken on.
func machine() string {
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	model, cores := "unknown processor", 0
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if key, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(key) == "model name" {
				model = strings.TrimSpace(value)
				cores++
			}
		}
	}
	var info unix.Sysinfo_t
	_ = unix.Sysinfo(&info)
	memory := uint64(info.Totalram) * uint64(info.Unit) >> 30
	return fmt.Sprintf("Machine: %s, %d cores that both nodes, all proxies, servers and load generators share, %d GiB of memory; Linux %s, %s. A virtual machine: expect noise.",
		model, cores, memory, unix.ByteSliceToString(uts.Release[:]), runtime.GOARCH)
}

// versions names the programs that the figures are of.
func (b *bench) versions() string {
	return fmt.Sprintf("Programs: Sluice built with %s; %s; %s; %s.", runtime.Version(),
		b.version("haproxy", "-v", `version (\S+)`), b.version("nginx", "-v", `nginx/(\S+)`), b.version("iperf3", "--version", `iperf (\S+)`))
}

// version is a program's own word for it, such as "haproxy 2.6.12".
func (b *bench) version(program, flag, pattern string) string {
	out, _ := b.Output(b.pclient.NS, 5*time.Second, sbin(program), flag)
	if match := regexp.MustCompile(pattern).FindStringSubmatch(out); match != nil {
		return program + " " + match[1]
	}
	return program
}
