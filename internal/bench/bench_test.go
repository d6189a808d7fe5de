// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWaysThatWereNotMeasuredHaveADashAndNoGoal(t *testing.T) {
	goal := row{what: "rate", unit: "1/s", goal: "≥ 1.5", limit: 1.5, atLeast: true, most: 32}
	for _, c := range []struct {
		name    string
		figures map[string]float64
		want    []string
	}{
		{"all", map[string]float64{"sluice": 30, "haproxy": 20, "nginx": 60, "direct": 60},
			[]string{"rate", "1/s", "30.0", "20.0", "60.0", "60.0", "1.50", "0.50", "≥ 1.5 met, ≤ 32 1/s met", "0.50"}},
		{"sluice alone", map[string]float64{"sluice": 33},
			[]string{"rate", "1/s", "33.0", "–", "–", "–", "–", "–", "≤ 32 1/s not met", "–"}},
		{"haproxy alone", map[string]float64{"haproxy": 20},
			[]string{"rate", "1/s", "–", "20.0", "–", "–", "–", "–", "", "–"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &bench{report: &report{out: new(bytes.Buffer)}}
			s := b.report.begin("", "", compared...)
			b.addCompared(s, goal, c.figures)
			if got := s.rows[0]; !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestStatFieldsStartAfterTheName(t *testing.T) {
	fields, err := statFields(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	want, err := unix.Getsid(0)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(fields[3]); got != strconv.Itoa(want) {
		t.Errorf("session %s, want %d", got, want)
	}
}

func TestOneWayMayBeMeasuredAlone(t *testing.T) {
	c := &config{sides: "sluice,direct"}
	var got []string
	for _, name := range wayNames {
		if c.takes(name) {
			got = append(got, name)
		}
	}
	if want := []string{"sluice", "direct"}; !slices.Equal(got, want) {
		t.Errorf("takes %v, want %v", got, want)
	}
}
