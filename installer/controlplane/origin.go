// SPDX-License-Identifier: Apache-2.0

package controlplane

import "fmt"

// Origin is where an object was read: a file and a line in it, counted from 1. Line 0 means the file as a whole.
type Origin struct {
	Path string
	Line int
}

func (o Origin) String() string {
	if o.Line == 0 {
		return o.Path
	}
	return fmt.Sprintf("%s:%d", o.Path, o.Line)
}

// FileError is a mistake in a file of the manifests or workloads folder.
type FileError struct {
	Origin
	Err error
}

func (e *FileError) Error() string { return fmt.Sprintf("%s: %v", e.Origin, e.Err) }

func (e *FileError) Unwrap() error { return e.Err }

// lineError is a mistake whose line is known but whose file is not, yet.
type lineError struct {
	line int
	err  error
}

func (e *lineError) Error() string { return fmt.Sprintf("line %d: %v", e.line, e.err) }

func (e *lineError) Unwrap() error { return e.err }

func atLine(line int, format string, args ...any) error {
	return &lineError{line: line, err: fmt.Errorf(format, args...)}
}
