// SPDX-License-Identifier: Apache-2.0

// Command nodeinit makes a set of namespaces look like a node, and is its process 1.
//
//	nodeinit init DIR NAME CGROUP   in new PID, mount, UTS and IPC namespaces: DIR holds what outlives a reboot, CGROUP is the
//	                        node's folder in each cgroup hierarchy; prints "ready"; reaps orphans until it is killed
//	nodeinit sweep NOTED DIR         outside: waits for the end of its input, then removes what the file NOTED names, and DIR
//	nodeinit run NAME PROGRAM ARGS   inside: puts itself into the node's cgroups, writes /run/pids/NAME and becomes PROGRAM
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// The first thread is the one whose namespaces /proc/PID/ns shows.
func init() { runtime.LockOSThread() }

func main() {
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 4 && args[0] == "init":
		err = boot(args[1], args[2], args[3])
	case len(args) == 3 && args[0] == "sweep":
		if err = sweep(args[1], args[2]); err == nil {
			return
		}
	case len(args) >= 3 && args[0] == "run":
		err = run(args[1], args[2:])
	default:
		err = errors.New("usage: nodeinit init DIR NAME CGROUP | sweep NOTED DIR | run NAME PROGRAM ARGS")
	}
	fmt.Fprintln(os.Stderr, "nodeinit:", err)
	os.Exit(1)
}

// boot returns only on error.
func boot(dir, name, cgroup string) error {
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	hierarchies, err := enterCgroups(cgroup)
	if err != nil {
		return err
	}
	err = errors.Join(unix.Sethostname([]byte(name)), mountAll(dir, hierarchies))
	if err != nil {
		return err
	}
	if err := os.WriteFile("/run/ready", nil, 0o644); err != nil {
		return err
	}
	for range children {
		for pid := 1; pid > 0; {
			pid, _ = unix.Wait4(-1, nil, unix.WNOHANG, nil)
		}
	}
	return nil
}

func run(name string, argv []string) error {
	if err := joinCgroups(name); err != nil {
		return err
	}
	program, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	pid := strconv.Itoa(os.Getpid())
	if err := errors.Join(os.MkdirAll("/run/pids", 0o755), os.WriteFile(filepath.Join("/run/pids", name), []byte(pid), 0o644)); err != nil {
		return err
	}
	return fmt.Errorf("exec %q: %w", program, unix.Exec(program, argv, os.Environ()))
}
