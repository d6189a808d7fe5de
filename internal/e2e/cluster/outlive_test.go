// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sluice-mesh/sluice/internal/lab/cluster"
)

// outlive starts a cluster in the first test that asks for it and takes it down after the last one. To the cluster it is
// the testing.TB of the whole time between; what a test asks of the cluster and does not get ends that test.
type outlive struct {
	testing.TB // nil: a method that is not below is not used

	once    sync.Once
	cluster *cluster.Cluster
	dir     string // of all that TempDir makes

	mu       sync.Mutex
	current  *testing.T // the last that asked
	cleanups []func()
	failed   bool
	skipped  string
}

func (o *outlive) start(t *testing.T) *cluster.Cluster {
	t.Helper()
	o.mu.Lock()
	o.current = t
	o.mu.Unlock()
	t.Cleanup(func() {
		if t.Failed() {
			o.Fail()
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.current == t {
			o.current = nil
		}
	})
	o.once.Do(func() {
		done := make(chan struct{})
		go func() { // Fatal and Skip end the goroutine that calls them
			defer close(done)
			o.cluster = cluster.Start(o, cluster.Config{})
		}()
		<-done
	})
	if o.cluster == nil {
		if o.skipped != "" {
			t.Skip(o.skipped)
		}
		t.Fatal("the cluster did not start")
	}
	return o.cluster
}

// end takes the cluster down and reports whether that went well.
func (o *outlive) end() bool {
	before := o.Failed()
	o.mu.Lock()
	o.current = nil
	o.failed = before
	o.mu.Unlock()
	for {
		o.mu.Lock()
		if len(o.cleanups) == 0 {
			o.mu.Unlock()
			return before || !o.Failed()
		}
		last := o.cleanups[len(o.cleanups)-1]
		o.cleanups = o.cleanups[:len(o.cleanups)-1]
		o.mu.Unlock()
		done := make(chan struct{})
		go func() { defer close(done); last() }()
		<-done
	}
}

func (o *outlive) Helper()      {}
func (o *outlive) Name() string { return "cluster" }

func (o *outlive) Cleanup(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.cleanups = append(o.cleanups, f)
}

// TempDir makes folders in one, as those of a test are.
func (o *outlive) TempDir() string {
	if o.dir == "" {
		dir, err := os.MkdirTemp("", "sl-k8s-")
		if err != nil {
			o.Fatal(err)
		}
		o.dir = dir
		o.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				o.Error(err)
			}
		})
	}
	dir, err := os.MkdirTemp(o.dir, "")
	if err != nil {
		o.Fatal(err)
	}
	return dir
}

func (o *outlive) Fail() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.failed = true
}

func (o *outlive) Failed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.failed
}

func (o *outlive) Log(args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	text := strings.TrimSuffix(fmt.Sprintln(args...), "\n")
	if o.current != nil {
		o.current.Log("cluster: " + text)
	} else {
		fmt.Println("cluster: " + text)
	}
}

func (o *outlive) Logf(format string, args ...any) { o.Log(fmt.Sprintf(format, args...)) }

func (o *outlive) Error(args ...any) {
	o.Log(args...)
	o.fail()
}

func (o *outlive) Errorf(format string, args ...any) { o.Error(fmt.Sprintf(format, args...)) }

// fail marks the current test, too.
func (o *outlive) fail() {
	o.Fail()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.current != nil {
		o.current.Fail()
	}
}

func (o *outlive) Fatal(args ...any) {
	o.Error(args...)
	o.FailNow()
}

func (o *outlive) Fatalf(format string, args ...any) { o.Fatal(fmt.Sprintf(format, args...)) }

// FailNow ends the test that asked, or if there is none, or none yet, the goroutine that starts or ends the cluster.
func (o *outlive) FailNow() {
	o.fail()
	o.mu.Lock()
	t := o.current
	o.mu.Unlock()
	if t != nil && o.cluster != nil {
		t.FailNow()
	}
	runtime.Goexit()
}

func (o *outlive) Skip(args ...any) {
	o.skipped = strings.TrimSuffix(fmt.Sprintln(slices.Clone(args)...), "\n")
	runtime.Goexit()
}
