// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"
)

func versionCommand(_ context.Context, args []string, stdout, _ io.Writer) error {
	fs := newFlagSet("version", stdout)
	if err := fs.parse(args, func() error { return nil }); err != nil {
		return err
	}
	fmt.Fprintln(stdout, "sluice-installer", version())
	return nil
}

// version is what the build recorded: a module version, else the commit.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return "devel"
}
