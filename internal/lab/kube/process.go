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

// process is a program that is started, and perhaps started again. Its output is appended to log.
type process struct {
	name, log string
	argv      []string

	cmd  *exec.Cmd     // nil while nothing runs
	done chan struct{} // closed once cmd has ended
	err  error         // how; to be read after done
}

func (p *process) start(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(p.argv[0], p.argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	// The test's own end, however it comes, is theirs.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	done := make(chan struct{})
	started := make(chan error)
	go p.live(cmd, started, done)
	if err := <-started; err != nil {
		t.Fatalf("start %s: %v", p.name, err)
	}
	p.cmd, p.done = cmd, done
}

// live runs the process from beginning to end on one thread: the kernel's signal at a parent's death means the thread.
func (p *process) live(cmd *exec.Cmd, started chan<- error, done chan<- struct{}) {
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

// ended is how the process ended by itself; nil as long as it runs.
func (p *process) ended() error {
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

func (p *process) stop(t testing.TB) { p.end(t, syscall.SIGTERM) }

func (p *process) kill(t testing.TB) { p.end(t, syscall.SIGKILL) }

// end does nothing if nothing runs.
func (p *process) end(t testing.TB, by syscall.Signal) {
	t.Helper()
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(by) // It may have ended.
	select {
	case <-p.done:
	case <-time.After(stopGrace):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	p.cmd = nil
}

// tail is the end of the log.
func (p *process) tail() string {
	const most = 4 << 10
	text, _ := os.ReadFile(p.log)
	if len(text) > most {
		text = text[len(text)-most:]
		text = text[bytes.IndexByte(text, '\n')+1:]
	}
	return string(text)
}
