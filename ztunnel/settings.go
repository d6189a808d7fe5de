// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// settings declares flags whose defaults come from environment variables. A variable that is set to nothing counts as
// not set.
type settings struct {
	flags  *flag.FlagSet
	getenv func(string) string
	errs   []error
}

// value is a flag of any type.
type value[T any] struct {
	p     *T
	parse func(string) (T, error)
	bare  bool
}

func (v *value[T]) String() string {
	if v.p == nil {
		return ""
	}
	return show(*v.p)
}

func (v *value[T]) Set(s string) error {
	parsed, err := v.parse(s)
	if err == nil {
		*v.p = parsed
	}
	return err
}

// IsBoolFlag lets a switch stand without a value.
func (v *value[T]) IsBoolFlag() bool { return v.bare }

func show(v any) string {
	if b, ok := v.(*bool); ok {
		if b == nil {
			return ""
		}
		return strconv.FormatBool(*b)
	}
	return fmt.Sprint(v)
}

// declare makes one setting: fallback, or what the first of env that is set says, or the flag.
func declare[T any](s *settings, p *T, name string, fallback T, parse func(string) (T, error), usage string, env ...string) {
	*p = fallback
	for _, variable := range env {
		text := s.getenv(variable)
		if text == "" {
			continue
		}
		parsed, err := parse(text)
		if err != nil {
			s.errs = append(s.errs, fmt.Errorf("environment %s: %w", variable, err))
			break
		}
		*p = parsed
		break
	}
	var zero T
	_, isSwitch := any(zero).(bool)
	s.flags.Var(&value[T]{p, parse, isSwitch}, name, describe(usage, env))
}

func describe(usage string, env []string) string {
	if len(env) == 0 {
		return usage
	}
	return usage + " [" + strings.Join(env, ", ") + "]"
}

func (s *settings) text(p *string, name, fallback, usage string, env ...string) {
	declare(s, p, name, fallback, func(t string) (string, error) { return t, nil }, usage, env...)
}

func (s *settings) span(p *time.Duration, name string, fallback time.Duration, usage string, env ...string) {
	declare(s, p, name, fallback, func(t string) (time.Duration, error) {
		d, err := time.ParseDuration(t)
		if err != nil {
			return 0, fmt.Errorf("%q is not a duration such as 90s or 5m", t)
		}
		return d, nil // Validate refuses those that are not positive.
	}, usage, env...)
}

func (s *settings) switched(p *bool, name string, fallback bool, usage string, env ...string) {
	declare(s, p, name, fallback, parseBool, usage, env...)
}

// choice is a switch with a third state: not set, which is nil.
func (s *settings) choice(p **bool, name, usage string, env ...string) {
	declare(s, p, name, nil, func(t string) (*bool, error) {
		b, err := parseBool(t)
		return &b, err
	}, usage, env...)
}

// number is between low and high, both allowed.
func (s *settings) number(p *int, name string, fallback, low, high int, usage string, env ...string) {
	declare(s, p, name, fallback, func(t string) (int, error) { return parseInt(t, low, high) }, usage, env...)
}

func (s *settings) mark(p *uint32, name string, fallback uint32, usage string, env ...string) {
	declare(s, p, name, fallback, func(t string) (uint32, error) {
		n, err := strconv.ParseUint(t, 0, 32)
		if err != nil || n == 0 {
			return 0, fmt.Errorf("%q is not a number from 1 to %d", t, uint32(math.MaxUint32))
		}
		return uint32(n), nil
	}, usage, env...)
}

// parseBool takes what the reference takes.
func parseBool(text string) (bool, error) {
	switch text {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", text)
}

func parseInt(text string, low, high int) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("%q is not a whole number from %d to %d", text, low, high)
	}
	return n, nil
}
