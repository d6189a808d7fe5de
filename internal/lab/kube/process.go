// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// stopGrace is how long a process may take to end by itself.
const stopGrace = 10 * time.Second

// Process is a program that is started, and perhaps started again. Its output is appended to Log. Not safe for concurrent
// use.
type Process struct {
	Name, Log string
	Argv      []string
	Clone     uintptr // namespaces of its own, as CLONE_NEWPID
	// Signal replaces the plain sending of a signal, for a program that Argv only leads to; nil: there is no other.
	Signal func(syscall.Signal) error

	cmd  *exec.Cmd     // nil while nothing runs
	done chan struct{} // closed once cmd has ended
	err  error         // how; to be read after done
}

// Start starts it; whether it lives on is Ended's to say.
func (p *Process) Start(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(p.Argv[0], p.Argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	// The test's own end, however it comes, is theirs.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: p.Clone}
	done := make(chan struct{})
	started := make(chan error)
	go p.live(cmd, started, done)
	if err := <-started; err != nil {
		t.Fatalf("start %s: %v", p.Name, err)
	}
	p.cmd, p.done = cmd, done
}

// live runs the process from beginning to end on one thread: the kernel's signal at a parent's death means the thread.
func (p *Process) live(cmd *exec.Cmd, started chan<- error, done chan<- struct{}) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Start()
	started <- err
	if err != nil {
		return
	}
	p.err = cmd.Wait()
	close(done)
}

// Ended is how the process ended by itself; nil as long as it runs. It must have been started.
func (p *Process) Ended() error {
	select {
	case <-p.done:
		if p.err == nil {
			return errors.New("exit status 0")
		}
		return p.err
	default:
		return nil
	}
}

// PID is the process's number; 0 while nothing runs.
func (p *Process) PID() int {
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Stop asks it to end, kills it if it takes long, and waits for the end. It does nothing if nothing runs.
func (p *Process) Stop(t testing.TB) { p.end(t, syscall.SIGTERM) }

// Kill kills it and waits for the end. It does nothing if nothing runs.
func (p *Process) Kill(t testing.TB) { p.end(t, syscall.SIGKILL) }

func (p *Process) end(t testing.TB, by syscall.Signal) {
	t.Helper()
	if p.cmd == nil {
		return
	}
	p.signal(t, by)
	select {
	case <-p.done:
	case <-time.After(stopGrace):
		p.signal(t, syscall.SIGKILL)
		<-p.done
	}
	p.cmd = nil
}

func (p *Process) signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if p.Signal == nil {
		_ = p.cmd.Process.Signal(s) // It may have ended.
	} else if err := p.Signal(s); err != nil && p.Ended() == nil {
		t.Logf("%v to %s: %v: it ends with the program that leads to it", s, p.Name, err)
		_ = p.cmd.Process.Kill()
	}
}

// Tail is the end of the log.
func (p *Process) Tail() string {
	const most = 4 << 10
	text, _ := os.ReadFile(p.Log)
	if len(text) > most {
		text = text[len(text)-most:]
		text = text[bytes.IndexByte(text, '\n')+1:]
	}
	return string(text)
}
