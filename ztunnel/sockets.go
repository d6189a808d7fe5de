// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"time"

	"github.com/sluice-mesh/sluice/ztunnel/inpod"
)

// tcp is how connections find out that the other end is gone. The user timeout is the reference's: as long as keepalive
// would take to give up.
func (c *Config) tcp() inpod.TCP {
	k := c.KeepAlive
	t := inpod.TCP{KeepAlive: net.KeepAliveConfig{Enable: k.Enabled, Idle: k.Time, Interval: k.Interval, Count: k.Retries}}
	if c.UserTimeout {
		t.UserTimeout = k.Time + time.Duration(k.Retries)*k.Interval
	}
	return t
}

func (c *Config) sockets() inpod.Options {
	return inpod.Options{
		TCP:            c.tcp(),
		OwnSource:      c.OriginalSource != nil && !*c.OriginalSource,
		ExclusivePorts: !c.PortReuse,
		IPv4Only:       !c.IPv6,
	}
}
