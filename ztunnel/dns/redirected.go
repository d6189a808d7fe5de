// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/miekg/dns"
)

// Redirected is for pods whose queries a foreign agent's rules redirect to our sockets. Nobody knows then which server
// a pod asked: others are asked instead, and the answer comes from the socket.
type Redirected struct {
	// Servers are asked in this order until one answers. With none, names that are not of the mesh get SERVFAIL.
	Servers []netip.AddrPort
}

var errNoServers = errors.New("no name server is known to ask")

// ReadServers returns the name servers of a resolv.conf. Those on loopback are left out: inside a pod that is the pod.
func ReadServers(file string) ([]netip.AddrPort, error) {
	conf, err := dns.ClientConfigFromFile(file)
	if err != nil {
		return nil, fmt.Errorf("name servers: %w", err)
	}
	port, err := strconv.ParseUint(conf.Port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("name servers: %w", err)
	}
	var servers []netip.AddrPort
	for _, text := range conf.Servers {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("name servers of %s: %w", file, err)
		}
		if a.Unmap().IsLoopback() || a.IsUnspecified() {
			continue
		}
		servers = append(servers, netip.AddrPortFrom(a.Unmap(), uint16(port)))
	}
	if len(servers) == 0 {
		return nil, fmt.Errorf("%s: %w", file, errNoServers)
	}
	return servers, nil
}

// forwardRedirected asks one server after the other, each for its share of the time that is left. One that fails or
// does not want to answer is as good as none unless it is the last.
func (s *Server) forwardRedirected(ctx context.Context, q *query) (reply []byte, err error) {
	err = errNoServers
	for i, server := range s.Redirected.Servers {
		left := upstreamTimeout
		if deadline, ok := ctx.Deadline(); ok {
			left = time.Until(deadline)
		}
		one, cancel := context.WithTimeout(ctx, left/time.Duration(len(s.Redirected.Servers)-i))
		asked := *q
		asked.to = server
		got, askErr := s.ask(one, &asked)
		cancel()
		if askErr != nil {
			err = errors.Join(err, askErr)
			continue
		}
		reply = got
		if code := got[3] & rcodeBits; code != dns.RcodeServerFailure && code != dns.RcodeRefused {
			break
		}
	}
	if reply != nil {
		return reply, nil
	}
	return nil, err
}

// answerTo is how an answer goes back to a query that came in on c.
func (s *Server) answerTo(c *net.UDPConn, q *query, reply []byte) error {
	reply = q.fit(reply)
	if s.Redirected == nil {
		return s.sockets.SendUDP(s.ctx, q.to, q.from, reply)
	}
	_, err := c.WriteToUDPAddrPort(reply, q.from)
	if errors.Is(err, net.ErrClosed) { // draining: queries go to the next ztunnel's socket by now
		return s.sockets.SendUDP(s.ctx, unmap(q.to), q.from, reply)
	}
	return err
}
