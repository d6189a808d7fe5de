// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/sluice-mesh/sluice/internal/lab"
)

// measureFor is how long each figure is taken.
const measureFor = 2 * time.Second

// cost is what a pair of pods reaches.
type cost struct {
	gbits1, gbits8 float64
	p50, p99       time.Duration
	perSecond      float64 // requests on one kept connection
	newPerSecond   float64 // requests with a connection each
}

// proveCost measures the same programs over the same wire between enrolled pods and between pods that are not.
func proveCost(s *scene, r *report) error {
	plain, err := s.addPlain()
	if err != nil {
		return err
	}
	without, err := s.measure(s.legacy, plain.Addr4)
	if err != nil {
		return fmt.Errorf("without the mesh: %w", err)
	}
	with, err := s.measure(s.client, s.server.Addr4)
	if err != nil {
		return fmt.Errorf("with the mesh: %w", err)
	}
	r.figure("iperf3, 1 stream", "%.2f with, %.2f Gbit/s without: %.2f", with.gbits1, without.gbits1, with.gbits1/without.gbits1)
	r.figure("iperf3, 8 streams", "%.2f with, %.2f Gbit/s without: %.2f", with.gbits8, without.gbits8, with.gbits8/without.gbits8)
	r.figure("requests on one connection", "%.0f with, %.0f a second without: %.2f", with.perSecond, without.perSecond, with.perSecond/without.perSecond)
	r.figure("  their latency, p50", "%d with, %d µs without: %.2f", with.p50.Microseconds(), without.p50.Microseconds(), float64(with.p50)/float64(without.p50))
	r.figure("  their latency, p99", "%d with, %d µs without: %.2f", with.p99.Microseconds(), without.p99.Microseconds(), float64(with.p99)/float64(without.p99))
	r.figure("requests with a connection each", "%.0f with, %.0f a second without: %.2f", with.newPerSecond, without.newPerSecond, with.newPerSecond/without.newPerSecond)
	return s.Nodes[1].DelPod(plain)
}

// addPlain makes a server beside the enrolled one that is not enrolled.
func (s *scene) addPlain() (*lab.Pod, error) {
	p, err := s.Nodes[1].AddPod(lab.PodSpec{Name: "plain", Namespace: "legacy"})
	if err != nil {
		return nil, err
	}
	if err := s.startNginx(p.NS); err != nil {
		return nil, err
	}
	if err := s.startIperf(p.NS); err != nil {
		return nil, err
	}
	return p, s.waitListening(map[string][]int{p.NS: {httpPort, iperfPort}})
}

func (s *scene) measure(from *lab.Pod, to netip.Addr) (c cost, err error) {
	if c.gbits1, err = s.iperf(from, to, 1); err != nil {
		return c, err
	}
	if c.gbits8, err = s.iperf(from, to, 8); err != nil {
		return c, err
	}
	took, err := s.requests(from, to, true)
	if err != nil {
		return c, err
	}
	c.perSecond = float64(len(took)) / measureFor.Seconds()
	c.p50, c.p99 = took[len(took)/2], took[len(took)*99/100]
	if took, err = s.requests(from, to, false); err != nil {
		return c, err
	}
	c.newPerSecond = float64(len(took)) / measureFor.Seconds()
	return c, nil
}

// iperf runs iperf3 and returns what the receiver got, in Gbit/s.
func (s *scene) iperf(from *lab.Pod, to netip.Addr, streams int) (float64, error) {
	out, err := s.command(from, "iperf3", "-J", "-c", to.String(), "-p", strconv.Itoa(iperfPort), "-P", strconv.Itoa(streams), "-t", strconv.Itoa(int(measureFor.Seconds())))
	if err != nil {
		return 0, fmt.Errorf("iperf3: %w: %s", err, out)
	}
	var result struct {
		End struct {
			Received struct {
				Bits float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		return 0, fmt.Errorf("iperf3: %w", err)
	}
	if result.End.Received.Bits == 0 {
		return 0, fmt.Errorf("iperf3 moved nothing: %s", out)
	}
	return result.End.Received.Bits / 1e9, nil
}

// requests asks one after another and returns how long each took, sorted.
func (s *scene) requests(from *lab.Pod, to netip.Addr, keepAlive bool) (took []time.Duration, err error) {
	client := s.HTTP(from.NS, keepAlive)
	defer client.CloseIdleConnections()
	target := url(to, httpPort, "")
	for end := time.Now().Add(measureFor); time.Now().Before(end); {
		began := time.Now()
		if err := get(client, target); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took, nil
}

func get(client *http.Client, target string) error {
	resp, err := client.Get(target)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", target, resp.Status)
	}
	return nil
}
