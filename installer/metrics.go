// SPDX-License-Identifier: Apache-2.0

package main

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/installer/controlplane"
	"github.com/sluice-mesh/sluice/installer/enroll"
)

// collector reads the agent's figures when asked. None of them grows with the number of pods: what a single pod's
// counters are, status shows.
type collector struct {
	a *agent

	mu       sync.Mutex
	verdicts sums
}

var (
	ztunnelsDesc  = prometheus.NewDesc("sluice_agent_ztunnels_connected", "Ztunnels connected over ZDS.", nil, nil)
	podsDesc      = prometheus.NewDesc("sluice_pods", "Known pods by how far into the mesh they are.", []string{"state"}, nil)
	troubleDesc   = prometheus.NewDesc("sluice_pods_troubled", "Pods that are not as they should be.", nil, nil)
	verdictsDesc  = prometheus.NewDesc("sluice_datapath_verdicts_total", "Verdicts of the datapath over all pods.", []string{"verdict"}, nil)
	completeDesc  = prometheus.NewDesc("sluice_destinations_complete", "Whether the set of mesh addresses is complete; until then all is captured.", nil, nil)
	hostDesc      = prometheus.NewDesc("sluice_host_program_attached", "Whether a program that serves the whole node is attached.", []string{"program"}, nil)
	trustDesc     = prometheus.NewDesc("sluice_host_probe_trusts_all", "Whether every process of the host passes for a probe.", nil, nil)
	reinstallDesc = prometheus.NewDesc("sluice_cni_reinstalls_total", "Times that plugin or conflist entry had been overwritten and were put back.", nil, nil)
	outageDesc    = prometheus.NewDesc("sluice_kubernetes_api_outage_seconds", "How long the Kubernetes API has not answered; 0 if it does.", nil, nil)
	installedDesc = prometheus.NewDesc("sluice_cni_installed", "Whether plugin and conflist entry are in place.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{ztunnelsDesc, podsDesc, troubleDesc, verdictsDesc, completeDesc, hostDesc, trustDesc, reinstallDesc, outageDesc, installedDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	gauge(ztunnelsDesc, c.a.ztunnels.Connected())
	for phase, n := range c.a.enroller.PodsByPhase() {
		gauge(podsDesc, n, phase)
	}
	figures := c.a.enroller.FiguresByPod()
	troubled := 0
	for _, f := range figures {
		troubled += number(f.Troubled)
	}
	gauge(troubleDesc, troubled)
	ch <- prometheus.MustNewConstMetric(reinstallDesc, prometheus.CounterValue, float64(c.a.keeper.reinstall.Load()))
	gauge(installedDesc, number(c.a.health.installed.Load()))
	if c.a.api != nil {
		ch <- prometheus.MustNewConstMetric(outageDesc, prometheus.GaugeValue, c.a.api.reach.Outage().Seconds())
	}
	if complete, err := c.a.node.Destinations().Complete(); err == nil {
		gauge(completeDesc, number(complete))
	}
	if host, err := c.a.node.HostStatus(); err == nil {
		gauge(hostDesc, number(host.Probe.Attached), "probe")
		gauge(hostDesc, number(host.Bind.Attached), "bind")
		gauge(hostDesc, number(host.Flows.Attached), "flows")
		gauge(trustDesc, number(host.Probe.Attached && host.Probe.TrustsAll))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.verdicts.take(figures)
	for verdict, n := range c.verdicts.total {
		ch <- prometheus.MustNewConstMetric(verdictsDesc, prometheus.CounterValue, float64(n), verdict)
	}
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// sums adds counters of pods up so that they never go back when a pod goes, or comes again under its name. What a pod
// counted after the last look at it is lost with it. The zero value is ready.
type sums struct {
	last  map[controlplane.Name]map[string]uint64
	total map[string]uint64
}

func (s *sums) take(figures map[controlplane.Name]enroll.Figures) {
	if s.total == nil {
		s.total = map[string]uint64{}
		for _, v := range bpf.AllVerdicts() {
			s.total[v.String()] = 0 // an alarm on a counter needs it from the beginning
		}
	}
	now := map[controlplane.Name]map[string]uint64{}
	for name, f := range figures {
		now[name] = f.Verdicts
		for verdict, n := range f.Verdicts {
			if before := s.last[name][verdict]; before <= n {
				n -= before
			}
			s.total[verdict] += n
		}
	}
	s.last = now
}
