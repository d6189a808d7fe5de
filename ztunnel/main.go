// SPDX-License-Identifier: Apache-2.0

// Command ztunnel is the proxy of a node: it carries the TCP connections of the node's mesh pods in mutual TLS, and lets
// in what policy allows.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/ztunnel/proxy"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() { os.Exit(run(os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr)) }

// run is the whole program. Logs go to stdout; stderr is for what keeps it from starting.
func run(args []string, getenv func(string) string, _ io.Reader, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == "version" {
		fmt.Fprintln(stdout, version())
		return exitOK
	}
	// Manifests of the reference start it with "proxy ztunnel"; the second word names a kind of proxy.
	for _, word := range []string{"proxy", "ztunnel"} {
		if len(args) > 0 && args[0] == word {
			args = args[1:]
		}
	}
	if len(args) > 0 && args[0] == "help" {
		args = []string{"--help"}
	}
	config, err := parseConfig(args, getenv, os.Environ(), stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		fmt.Fprintf(stderr, "ztunnel: bad configuration:\n%v\n", err)
		return exitUsage
	}
	levels, _ := telemetry.ParseLevels(config.LogLevel) // Validate has parsed both.
	format, _ := telemetry.ParseFormat(config.LogFormat)
	log := telemetry.NewLogger(stdout, format, levels)
	defer func() {
		if err := telemetry.Flush(log); err != nil {
			fmt.Fprintf(stderr, "ztunnel: %v\n", err)
		}
	}()

	limitThreads(config, getenv, log)
	limitMemory(getenv, log)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := serve(ctx, config, log, levels); err != nil {
		log.Error("ztunnel ends", "error", err)
		return exitFailed
	}
	log.Info("ztunnel ends")
	return exitOK
}

// raiseFileLimit takes all the descriptors it is allowed: each connection needs two.
func raiseFileLimit(log *slog.Logger) {
	var limit unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	if err == nil {
		limit.Cur = limit.Max
		err = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	}
	if err != nil {
		log.Warn("limit of open files is as it was", "error", err)
		return
	}
	log.Debug("limit of open files", "files", limit.Cur)
}

// limits derives from the limits of open files and of memory how much connections may use.
func limits(c *Config, log *slog.Logger) proxy.Limits {
	l := proxy.Limits{Connections: c.MaxConnections, ConnectionsPerPod: c.MaxConnectionsPerPod, Memory: windowMemory(c, log)}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		log.Warn("limit of open files is not known, connections are not limited by it", "error", err)
		return l
	}
	l.Descriptors = proxy.DescriptorsFor(files.Cur)
	log.Info("limits of connections", "open_files", files.Cur, "for_connections", l.Descriptors)
	return l
}

// version is the module's version and the commit it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && v == "(devel)" {
			v = s.Value
		}
	}
	return v
}
