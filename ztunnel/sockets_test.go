// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"
	"time"
)

func TestUserTimeoutIsAsLongAsKeepAliveTakes(t *testing.T) {
	c, err := parseConfig([]string{"--node-name=n"}, environment(), nil, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	if got := c.tcp(); !got.KeepAlive.Enable || got.KeepAlive.Idle != 180*time.Second || got.KeepAlive.Count != 9 || got.UserTimeout != 0 {
		t.Errorf("default: got %+v", got)
	}
	if got := c.sockets(); got.OwnSource || got.ExclusivePorts || got.IPv4Only {
		t.Errorf("default: got %+v", got)
	}
	env := environment("USER_TIMEOUT_ENABLED", "true", "KEEPALIVE_TIME", "10s", "KEEPALIVE_INTERVAL", "5s", "KEEPALIVE_RETRIES", "4", "ENABLE_ORIG_SRC", "false", "INPOD_PORT_REUSE", "false", "IPV6_ENABLED", "false")
	if c, err = parseConfig([]string{"--node-name=n"}, env, nil, t.Output()); err != nil {
		t.Fatal(err)
	}
	if got := c.tcp().UserTimeout; got != 30*time.Second {
		t.Errorf("user timeout: got %s, want 30s", got)
	}
	if got := c.sockets(); !got.OwnSource || !got.ExclusivePorts || !got.IPv4Only {
		t.Errorf("got %+v", got)
	}
}
