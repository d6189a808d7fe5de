// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Proc is a process that the lab started. It is told from a later process of the same number by its start time, and it
// outlives the program that started it.
type Proc struct {
	Name  string `json:"name"`
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot, /proc/PID/stat field 22
	dir   string
}

// Start runs a program inside a namespace, in a session of its own, output appended to logs/NAME.log, and writes
// pids/NAME so that any later run of the lab can stop it.
func (l *Lab) Start(ns, name string, argv ...string) (*Proc, error) {
	p := &Proc{Name: name, dir: filepath.Join(l.Dir, "pids")}
	log, err := l.openLog(name)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// The child gets the namespace of the thread that forks it.
	if err := In(ns, cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.PID = cmd.Process.Pid
	p.Start, _, err = statOf(p.PID)
	go func() { _ = cmd.Wait() }() // reaps; ends with the process
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, p.save()
}

// LogPath is where the output of a process goes.
func (l *Lab) LogPath(name string) string { return filepath.Join(l.Logs(), name+".log") }

func (l *Lab) openLog(name string) (*os.File, error) {
	if err := os.MkdirAll(l.Logs(), 0o755); err != nil {
		return nil, err
	}
	return os.OpenFile(l.LogPath(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
}

func (p *Proc) path() string { return filepath.Join(p.dir, p.Name) }

func (p *Proc) save() error {
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(p.path(), append(data, '\n'), 0o644)
}

// Procs lists the processes that were started and not stopped, by this program or an earlier one.
func (l *Lab) Procs() ([]*Proc, error) {
	dir := filepath.Join(l.Dir, "pids")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var procs []*Proc
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		p := &Proc{dir: dir}
		if err := json.Unmarshal(data, p); err != nil {
			return nil, fmt.Errorf("pid file %s: %w", e.Name(), err)
		}
		procs = append(procs, p)
	}
	return procs, nil
}

// Alive reports whether the process still runs; a zombie does not.
func (p *Proc) Alive() bool {
	start, state, err := statOf(p.PID)
	return err == nil && start == p.Start && state != 'Z' && state != 'X'
}

// Signal sends a signal, and does nothing if the process is gone.
func (p *Proc) Signal(s syscall.Signal) error {
	if !p.Alive() {
		return nil
	}
	if err := syscall.Kill(p.PID, s); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal %s: %w", p.Name, err)
	}
	return nil
}

// Wait waits until the process is gone.
func (p *Proc) Wait(timeout time.Duration) error {
	return Poll(timeout, func() error {
		if p.Alive() {
			return fmt.Errorf("%s (pid %d) still runs", p.Name, p.PID)
		}
		return nil
	})
}

// Stop sends SIGTERM, after grace SIGKILL, and forgets the process. Stopping again does nothing.
func (p *Proc) Stop(grace time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if p.Wait(grace) != nil {
		return p.Kill()
	}
	return p.forget()
}

// Kill sends SIGKILL to the process and the children it did not give a session, waits for the end and forgets it.
func (p *Proc) Kill() error {
	if p.Alive() { // else the number may be another group's by now
		if err := syscall.Kill(-p.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill %s: %w", p.Name, err)
		}
	}
	if err := p.Wait(5 * time.Second); err != nil {
		return err
	}
	return p.forget()
}

func (p *Proc) forget() error {
	if err := os.Remove(p.path()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// statOf reads state and start time of a process. proc(5): the name, field 2, may hold anything, so count from its
// closing parenthesis.
func statOf(pid int) (start uint64, state byte, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 20 {
		return 0, 0, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(fields))
	}
	start, err = strconv.ParseUint(string(fields[19]), 10, 64)
	return start, fields[0][0], err
}

// Poll calls check every 20 ms until it returns nil; after timeout it returns check's last error.
func Poll(timeout time.Duration, check func() error) error {
	deadline := time.Now().Add(timeout)
	for {
		err := check()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v: %w", timeout, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
