// SPDX-License-Identifier: Apache-2.0

// Package telemetry is what ztunnel tells the outside: its logs, the access log, metrics, readiness and the admin page.
package telemetry

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
)

// LevelTrace and LevelOff extend slog's levels to those the admin page accepts.
const (
	LevelTrace = slog.Level(-8)
	LevelOff   = slog.Level(100)
)

var levelNames = map[string]slog.Level{
	"trace": LevelTrace, "debug": slog.LevelDebug, "info": slog.LevelInfo,
	"warn": slog.LevelWarn, "warning": slog.LevelWarn, "error": slog.LevelError, "off": LevelOff,
}

// Levels says which lines are written: one default and exceptions by scope ("access", "xds", ...).
//
// The zero value is not usable, see [ParseLevels]. Safe for concurrent use; a change takes effect at the next line.
type Levels struct {
	mu      sync.RWMutex
	initial levelSet
	current levelSet
}

type levelSet struct {
	base   slog.Level
	scopes map[string]slog.Level
}

// ParseLevels reads "info" or "info,access=debug,xds=off". All mistakes are returned together.
func ParseLevels(s string) (*Levels, error) {
	set, err := parseLevelSet(levelSet{base: slog.LevelInfo}, s)
	if err != nil {
		return nil, err
	}
	return &Levels{initial: set, current: set}, nil
}

func parseLevelSet(from levelSet, s string) (levelSet, error) {
	set := levelSet{base: from.base, scopes: maps.Clone(from.scopes)}
	if set.scopes == nil {
		set.scopes = map[string]slog.Level{}
	}
	var errs []error
	for part := range strings.SplitSeq(s, ",") {
		scope, name, scoped := strings.Cut(strings.TrimSpace(part), "=")
		if !scoped {
			scope, name = "", scope
		}
		level, ok := levelNames[strings.ToLower(name)]
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("log level %q: not one of off, error, warn, info, debug, trace", name))
		case scoped:
			set.scopes[scope] = level
		default:
			set.base = level
		}
	}
	return set, errors.Join(errs...)
}

// Update applies a string in the form of [ParseLevels] on top of what is in force. On error nothing changes.
func (l *Levels) Update(s string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	set, err := parseLevelSet(l.current, s)
	if err == nil {
		l.current = set
	}
	return err
}

// Reset returns to the levels of the start.
func (l *Levels) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current = l.initial
}

// String lists the levels in the form that ParseLevels reads.
func (l *Levels) String() string {
	l.mu.RLock()
	defer l.mu.RUnlock()
	parts := []string{levelName(l.current.base)}
	for _, scope := range slices.Sorted(maps.Keys(l.current.scopes)) {
		parts = append(parts, scope+"="+levelName(l.current.scopes[scope]))
	}
	return strings.Join(parts, ",")
}

func (l *Levels) enabled(scope string, level slog.Level) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if least, ok := l.current.scopes[scope]; ok {
		return level >= least
	}
	return level >= l.current.base
}

func levelName(l slog.Level) string {
	switch {
	case l >= LevelOff:
		return "off"
	case l >= slog.LevelError:
		return "error"
	case l >= slog.LevelWarn:
		return "warn"
	case l >= slog.LevelInfo:
		return "info"
	case l >= slog.LevelDebug:
		return "debug"
	}
	return "trace"
}
