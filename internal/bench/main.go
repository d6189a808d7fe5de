// SPDX-License-Identifier: Apache-2.0

// Command bench measures Sluice on two nodes on this machine, against no mesh and against pairs of haproxy and of
// nginx that carry the same connections in mutual TLS: "make bench".
//
// Every figure is the median of rounds in which the sides take turns, so that a slow moment of the machine meets all of
// them. What counts is the ratio.
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
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/lab"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

type config struct {
	build, out, goBench string
	only, sides, name   string
	rounds              int
	span                time.Duration
}

func run(args []string, stdout, stderr io.Writer) int {
	var c config
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&c.build, "build", "build", "folder with bin/ and cni/")
	flags.StringVar(&c.out, "o", "", "write the tables to this Markdown file too")
	flags.StringVar(&c.goBench, "gobench", "", "output of go test -bench to put into the file")
	flags.StringVar(&c.only, "only", "", "comma-separated parts to run: "+strings.Join(partNames(), ", ")+"; default all")
	flags.StringVar(&c.name, "name", "bench", "namespaces are called NAME-*, and /run/sluice-NAME holds the rest: runs of different names may go on side by side, but share the machine")
	flags.StringVar(&c.sides, "ways", "", "comma-separated ways to compare, for profiling: "+strings.Join(wayNames, ", ")+"; default all")
	flags.IntVar(&c.rounds, "rounds", 5, "rounds per figure")
	flags.DurationVar(&c.span, "span", 3*time.Second, "length of each measurement")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if err := c.validate(); err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := c.measure(ctx, stdout); err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

func (c *config) validate() error {
	var errs []error
	if os.Geteuid() != 0 {
		errs = append(errs, errors.New("needs root, for network namespaces and BPF: run it with sudo"))
	}
	if !regexp.MustCompile(`^[a-z][a-z0-9]{0,9}$`).MatchString(c.name) {
		errs = append(errs, fmt.Errorf("-name: %q is not up to 10 small letters and digits", c.name))
	}
	if c.rounds < 1 || c.span < time.Second {
		errs = append(errs, errors.New("at least 1 round and a span of 1s"))
	}
	for _, name := range c.parts() {
		if _, ok := parts[name]; !ok {
			errs = append(errs, fmt.Errorf("-only: %q is none of %s", name, strings.Join(partNames(), ", ")))
		}
	}
	for _, name := range strings.Split(c.sides, ",") {
		if c.sides != "" && !slices.Contains(wayNames, name) {
			errs = append(errs, fmt.Errorf("-ways: %q is none of %s", name, strings.Join(wayNames, ", ")))
		}
	}
	return errors.Join(errs...)
}

// takes reports whether a way is to be measured.
func (c *config) takes(way string) bool {
	return c.sides == "" || slices.Contains(strings.Split(c.sides, ","), way)
}

func (c *config) parts() []string {
	if c.only == "" {
		return partNames()
	}
	return strings.Split(c.only, ",")
}

// allowFiles raises the limit of open files, which all that is started inherits, as far as it goes and is of use.
func allowFiles() (int, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("limit of open files: %w", err)
	}
	limit.Cur = limit.Max
	if limit.Max < 4*idleConns {
		raised := unix.Rlimit{Cur: 4 * idleConns, Max: 4 * idleConns}
		if unix.Setrlimit(unix.RLIMIT_NOFILE, &raised) == nil { // needs CAP_SYS_RESOURCE
			return int(raised.Cur), nil
		}
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("limit of open files: %w", err)
	}
	return int(limit.Cur), nil
}

// lock keeps a second run of the same name from taking down the first one's lab. It ends with the process.
func (c *config) lock() (*os.File, error) {
	path := "/run/sluice-" + c.name + ".lock"
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("another run has the name %q (%s: %w): wait for its end, or take another with -name", c.name, path, err)
	}
	return f, nil
}

// measure builds the lab, runs the parts, and takes everything down whatever happened.
func (c *config) measure(ctx context.Context, out io.Writer) (err error) {
	lock, err := c.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	files, err := allowFiles()
	if err != nil {
		return err
	}
	build, err := filepath.Abs(c.build)
	if err != nil {
		return err
	}
	b := &bench{Lab: lab.New(c.name, "/run/sluice-"+c.name, build), config: c, ctx: ctx, files: files, report: &report{out: out}}
	if b.IsUp() {
		b.say("removing what an earlier run left")
		if err := b.Down(); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, b.lastWords())
		}
		err = errors.Join(err, b.Down())
	}()
	if err := b.up(); err != nil {
		return err
	}
	for _, name := range c.parts() {
		b.say("%s", name)
		if err := parts[name].run(b); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if c.out == "" {
		return nil
	}
	return b.writeReport()
}
