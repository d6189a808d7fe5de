// SPDX-License-Identifier: Apache-2.0

// Command sluice-installer is the node agent of Sluice and its command line.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Exit codes.
const (
	exitOK = iota
	exitFailure
	exitUsage
)

const usage = `sluice-installer is the node agent of Sluice: it enrols this node's pods into the mesh.

Usage: sluice-installer COMMAND [flags]

Commands:
  agent      run the node agent until SIGTERM; what is enrolled stays so
  install    put the CNI plugin and its conflist entry on this node
  uninstall  take the conflist entry and the plugin off this node
  status     show agent, ztunnels and pods; exits with 1 if anything is wrong
  verify     check one pod, live connection included; exits with 1 if a check fails
  why        tell what happens to a connection from a pod, and which rule decides
  flows      show the connections of enrolled pods, or follow them
  controlplane
             serve ztunnels of a whole cluster from the Kubernetes API
  version    print the version

"sluice-installer COMMAND --help" lists the command's flags.
Exit codes: 0 done and all is well, 1 something is wrong, 2 a mistake in the command line.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// command is one subcommand: it parses its flags from args and returns when done or when ctx ends.
type command func(ctx context.Context, args []string, stdout, stderr io.Writer) error

var commands = map[string]command{
	"agent":     agentCommand,
	"install":   installCommand,
	"uninstall": uninstallCommand,
	"status":    statusCommand,
	"flows":     flowsCommand,
	"verify":    verifyCommand,
	"why":       whyCommand,
	"version":   versionCommand,

	"controlplane": controlplaneCommand,
}

// usageError is a mistake in the command line, as opposed to a failure to do what it says.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return exitUsage
	}
	switch args[0] {
	case "-h", "-help", "--help", "help":
		fmt.Fprint(stdout, usage)
		return exitOK
	case "--version":
		args = []string{"version"}
	}
	cmd, ok := commands[args[0]]
	if !ok {
		fmt.Fprintf(stderr, "sluice-installer: unknown command %q\n\n%s", args[0], usage)
		return exitUsage
	}
	err := cmd(ctx, args[1:], stdout, stderr)
	var mistake usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return exitOK
	case errors.As(err, &mistake):
		fmt.Fprintf(stderr, "sluice-installer %s: %v\n", args[0], err)
		return exitUsage
	}
	fmt.Fprintf(stderr, "sluice-installer %s: %v\n", args[0], err)
	return exitFailure
}

// flagSet is a command's flags. Help goes to stdout; mistakes are errors and left to run to print.
type flagSet struct {
	*flag.FlagSet
	stdout   io.Writer
	operands string   // names of what comes beside flags, such as "POD DST"
	given    []string // what came, in that order
}

func newFlagSet(name string, stdout io.Writer) *flagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	return &flagSet{FlagSet: fs, stdout: stdout}
}

// parse reads args and calls validate; all mistakes are reported together.
func (fs *flagSet) parse(args []string, validate func() error) error {
	err := fs.read(args)
	if errors.Is(err, flag.ErrHelp) {
		fs.SetOutput(fs.stdout)
		fmt.Fprintf(fs.stdout, "Usage: %s [flags]\n\nFlags:\n", strings.TrimSpace("sluice-installer "+fs.Name()+" "+fs.operands))
		fs.PrintDefaults()
		return err
	}
	if err != nil {
		return usageError{err}
	}
	var errs []error
	switch wanted := strings.Fields(fs.operands); {
	case len(fs.given) > len(wanted):
		errs = append(errs, fmt.Errorf("unexpected argument %q", fs.given[len(wanted)]))
	case slices.Contains(fs.given, ""):
		errs = append(errs, fmt.Errorf("%s: is empty", wanted[slices.Index(fs.given, "")]))
	case len(fs.given) < len(wanted):
		errs = append(errs, fmt.Errorf("%s is missing", wanted[len(fs.given)]))
	}
	if err := errors.Join(append(errs, validate())...); err != nil {
		return usageError{err}
	}
	return nil
}

// read takes flags before, between and behind the operands.
func (fs *flagSet) read(args []string) error {
	for {
		if err := fs.Parse(args); err != nil || fs.NArg() == 0 {
			return err
		}
		fs.given = append(fs.given, fs.Arg(0))
		args = fs.Args()[1:]
	}
}
