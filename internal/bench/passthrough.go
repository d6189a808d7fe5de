// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/lab"
)

// flipManifest says whether the pod is in the mesh.
const flipManifest = `apiVersion: v1
kind: Pod
metadata:
  name: flip
  namespace: mesh
  labels: {istio.io/dataplane-mode: %s}
`

// passthrough compares what leaves the mesh from one pod while it is enrolled and while it is not.
func (b *bench) passthrough() error {
	s := b.report.begin("Traffic that leaves the mesh", "One pod to a host that is no pod, while enrolled and while not, in turns; the enrolment changes live.",
		"what", "unit", "enrolled", "not enrolled", "ratio", "goal")
	pod, err := b.Nodes[0].AddPod(lab.PodSpec{Name: "flip", Namespace: "mesh"})
	if err != nil {
		return err
	}
	to := way{"outside", pod.NS, netip.AddrPortFrom(lab.OutsideAddr4, httpPort), netip.AddrPortFrom(lab.OutsideAddr4, iperfPort)}
	figures := []struct {
		what, unit string
		measure    func() (float64, error)
		samples    map[bool][]float64
	}{
		{"1 stream", "Gbit/s", func() (float64, error) { return b.iperf(to.ns, to.perf, 1, false) }, map[bool][]float64{}},
		{"16 streams", "Gbit/s", func() (float64, error) { return b.iperf(to.ns, to.perf, 16, false) }, map[bool][]float64{}},
		{"1 stream, towards the pod", "Gbit/s", func() (float64, error) { return b.iperf(to.ns, to.perf, 1, true) }, map[bool][]float64{}},
		{"a connection per request", "1/s", func() (float64, error) {
			took, err := b.connectEach(to, 16)
			return float64(len(took)) / b.span.Seconds(), err
		}, map[bool][]float64{}},
	}
	for round := range b.rounds {
		for _, first := range []bool{true, false} {
			enrolled := first == (round%2 == 0)
			if err := b.flip(pod, enrolled); err != nil {
				return err
			}
			for _, f := range figures {
				got, err := f.measure()
				if err != nil {
					return fmt.Errorf("%s: %w", f.what, err)
				}
				f.samples[enrolled] = append(f.samples[enrolled], got)
			}
		}
	}
	for _, f := range figures {
		with, without := median(f.samples[true]), median(f.samples[false])
		b.report.add(s, f.what, f.unit, number(with), number(without), fmt.Sprintf("%.3f", with/without), verdict(with/without, "≥ 0.97", 0.97, true))
	}
	return b.Nodes[0].DelPod(pod)
}

// flip changes the pod's label and waits until its programs are there, or gone.
func (b *bench) flip(pod *lab.Pod, enrolled bool) error {
	mode := "none"
	if enrolled {
		mode = "ambient"
	}
	if err := b.Write("flip.yaml", fmt.Sprintf(flipManifest, mode)); err != nil {
		return err
	}
	return lab.Poll(30*time.Second, func() error {
		is, err := b.isEnrolled(pod)
		if err == nil && is != enrolled {
			err = fmt.Errorf("pod flip is enrolled: %t, want %t", is, enrolled)
		}
		return err
	})
}

func (b *bench) isEnrolled(pod *lab.Pod) (bool, error) {
	node, err := bpf.OpenNode(b.Nodes[0].PinRoot())
	if err != nil {
		return false, err
	}
	defer func() { _ = node.Close() }()
	infos, err := node.Pods()
	if err != nil {
		return false, err
	}
	for _, info := range infos {
		if info.ContainerID == pod.ContainerID {
			return true, nil
		}
	}
	return false, nil
}
