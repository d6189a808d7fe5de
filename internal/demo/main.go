// SPDX-License-Identifier: Apache-2.0

// Command demo runs Sluice on two nodes on this machine, drives unmodified programs through it and proves what it
// claims from measurements: "make demo".
//
//	demo run   bring it up, prove, take it down; exit 1 if a proof fails
//	demo up    bring it up and leave it running
//	demo down  remove it and check that nothing stays
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/lab"
)

// dir is all that the demo keeps on the machine, besides namespaces called demo-*.
const dir = "/run/sluice-demo"

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprintln(stderr, "usage: demo run|up|down [-build DIR] [-manifests DIR]") }
	build := flags.String("build", "build", "folder with bin/ and cni/")
	manifests := flags.String("manifests", "manifests/demo", "folder of the demo's YAML")
	if len(args) == 0 {
		flags.Usage()
		return 2
	}
	if err := flags.Parse(args[1:]); err != nil || flags.NArg() > 0 {
		flags.Usage()
		return 2
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(stderr, "demo: needs root, for network namespaces and BPF: run it with sudo")
		return 1
	}
	unlock, err := lock()
	if err != nil {
		fmt.Fprintln(stderr, "demo:", err)
		return 1
	}
	defer unlock()
	if err := dispatch(args[0], *build, *manifests, stdout); err != nil {
		fmt.Fprintln(stderr, "demo:", err)
		return 1
	}
	return 0
}

func dispatch(verb, build, manifests string, out io.Writer) error {
	build, err := filepath.Abs(build)
	if err != nil {
		return err
	}
	s := &scene{Lab: lab.New("demo", dir, build), manifests: manifests, out: out}
	switch verb {
	case "up":
		return s.upToTry()
	case "down":
		return s.takeDown()
	case "run":
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		return s.prove(ctx)
	}
	return fmt.Errorf("%q is none of run, up, down", verb)
}

// lock keeps a second demo out while one works. The kernel gives it back when the process ends.
func lock() (unlock func(), err error) {
	f, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, errors.New("another demo command is at work")
	}
	return func() {
		_ = os.Remove(f.Name())
		f.Close()
	}, nil
}

// upToTry brings the demo up, unless it is, and says what can be done with it.
func (s *scene) upToTry() error {
	switch _, err := os.Stat(s.upMark()); {
	case err == nil:
		fmt.Fprintln(s.out, "the demo is already up (make demo-down removes it)")
	case s.IsUp():
		fmt.Fprintln(s.out, "removing a demo that did not come up")
		if err := s.Down(); err != nil {
			return fmt.Errorf("down: %w", err)
		}
		fallthrough
	default:
		if err := s.up(); err != nil {
			return s.failed(err)
		}
	}
	fmt.Fprint(s.out, s.hints())
	return nil
}

// upMark is the file that says that the demo came up as a whole.
func (s *scene) upMark() string { return filepath.Join(s.Dir, "up") }

func (s *scene) takeDown() error {
	if !s.IsUp() {
		fmt.Fprintln(s.out, "the demo is not up")
		return nil
	}
	if err := s.Down(); err != nil {
		return fmt.Errorf("down: %w", err)
	}
	fmt.Fprintln(s.out, "the demo is down: no namespace, process, mount, pin or file of it is left")
	return nil
}

// prove is "make demo": a fresh start, every proof, the table, and everything removed whatever happened.
func (s *scene) prove(ctx context.Context) error {
	if s.IsUp() {
		fmt.Fprintln(s.out, "removing the demo that is up")
		if err := s.Down(); err != nil {
			return fmt.Errorf("down: %w", err)
		}
	}
	err := s.up()
	if err == nil {
		err = s.runProofs(ctx)
	}
	if err != nil {
		err = s.failed(err)
	}
	return errors.Join(err, s.takeDown())
}

// failed keeps the logs of a demo that did not work and says where.
func (s *scene) failed(err error) error {
	kept, kerr := os.MkdirTemp("", "sluice-demo-")
	if kerr == nil {
		kerr = os.CopyFS(filepath.Join(kept, "logs"), os.DirFS(s.Logs()))
	}
	if kerr != nil {
		return errors.Join(err, fmt.Errorf("keep logs: %w", kerr))
	}
	return fmt.Errorf("%w\nlogs are kept in %s", err, kept)
}
