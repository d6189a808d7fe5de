// SPDX-License-Identifier: Apache-2.0

// Command recorder is a chained CNI plugin that changes nothing and appends what it was called with, as one JSON line, to
// the file "log" of its configuration.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
)

// Call is one line.
type Call struct {
	Command     string
	ContainerID string
	Netns       string
	Args        string
	PrevResult  bool
}

func main() {
	if err := run(); err != nil {
		_ = json.NewEncoder(os.Stdout).Encode(map[string]any{"cniVersion": "1.0.0", "code": 999, "msg": "recorder: " + err.Error()})
		os.Exit(1)
	}
}

func run() error {
	command := os.Getenv("CNI_COMMAND")
	if command == "VERSION" {
		fmt.Println(`{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}`)
		return nil
	}
	stdin, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var conf struct {
		Log        string          `json:"log"`
		PrevResult json.RawMessage `json:"prevResult"`
	}
	if err := json.Unmarshal(stdin, &conf); err != nil {
		return err
	}
	line, err := json.Marshal(Call{command, os.Getenv("CNI_CONTAINERID"), os.Getenv("CNI_NETNS"), os.Getenv("CNI_ARGS"), conf.PrevResult != nil})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(conf.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(append(line, '\n')); err != nil { // one write: calls of many pods do not mix
		return err
	}
	if command == "ADD" {
		fmt.Println(string(conf.PrevResult))
	}
	return nil
}
