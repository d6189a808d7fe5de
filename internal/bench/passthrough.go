// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/internal/lab"
)

// flipManifest says which of two pods is in the mesh.
const flipManifest = `apiVersion: v1
kind: Pod
metadata:
  name: %s
  namespace: mesh
  labels: {istio.io/dataplane-mode: ambient}
---
apiVersion: v1
kind: Pod
metadata:
  name: %s
  namespace: mesh
  labels: {istio.io/dataplane-mode: none}
`

// passthrough compares what leaves the mesh from pods while they are enrolled and while they are not. Two pods are
// measured in turns, one of them enrolled; half-way they change places.
func (b *bench) passthrough() error {
	s := b.report.begin("Traffic that leaves the mesh", "Two pods in turns, one enrolled, to a host that is no pod. Half-way the enrolment changes places, live, so that each pod is measured both ways.",
		"what", "unit", "enrolled", "not enrolled", "ratio", "goal")
	var pods [2]*lab.Pod
	for i, name := range []string{"flip", "flop"} {
		pod, err := b.Nodes[0].AddPod(lab.PodSpec{Name: name, Namespace: "mesh"})
		if err != nil {
			return err
		}
		pods[i] = pod
	}
	figures := b.passthroughFigures()
	for half := range pods {
		if err := b.flip(pods[half], pods[1-half]); err != nil {
			return err
		}
		for round := range 2 * b.rounds {
			for _, turn := range []int{round % 2, 1 - round%2} {
				if err := figures.take(pods[turn].NS, turn == half); err != nil {
					return err
				}
			}
		}
	}
	for _, f := range figures {
		with, without := median(f.samples[true]), median(f.samples[false])
		b.report.add(s, f.what, f.unit, number(with), number(without), fmt.Sprintf("%.3f", with/without), verdict(with/without, "≥ 0.97", 0.97, true))
	}
	return errors.Join(b.Nodes[0].DelPod(pods[0]), b.Nodes[0].DelPod(pods[1]), b.Remove("flip.yaml"))
}

// figure is measured from a namespace; its samples are by whether the pod is enrolled.
type figure struct {
	what, unit string
	measure    func(ns string) (float64, error)
	samples    map[bool][]float64
}

type figures []figure

func (f figures) take(ns string, enrolled bool) error {
	for _, each := range f {
		got, err := each.measure(ns)
		if err != nil {
			return fmt.Errorf("%s: %w", each.what, err)
		}
		each.samples[enrolled] = append(each.samples[enrolled], got)
	}
	return nil
}

func (b *bench) passthroughFigures() figures {
	to := way{http: netip.AddrPortFrom(lab.OutsideAddr4, httpPort), perf: netip.AddrPortFrom(lab.OutsideAddr4, iperfPort)}
	iperf := func(streams int, reverse bool) func(string) (float64, error) {
		return func(ns string) (rate float64, err error) {
			err = retry(func() error {
				rate, _, err = b.iperf(ns, to.perf, streams, reverse)
				return err
			})
			return rate, err
		}
	}
	connect := func(ns string) (float64, error) {
		to.ns = ns
		took, err := b.connectEach(to, 16)
		return float64(len(took)) / b.span.Seconds(), err
	}
	return figures{
		{"1 stream", "Gbit/s", iperf(1, false), map[bool][]float64{}},
		{"16 streams", "Gbit/s", iperf(16, false), map[bool][]float64{}},
		{"1 stream, towards the pod", "Gbit/s", iperf(1, true), map[bool][]float64{}},
		{"a connection per request", "1/s", connect, map[bool][]float64{}},
	}
}

// flip changes the pods' labels and waits until the programs of one are there, and those of the other gone.
func (b *bench) flip(in, out *lab.Pod) error {
	if err := b.Write("flip.yaml", fmt.Sprintf(flipManifest, in.Name, out.Name)); err != nil {
		return err
	}
	return lab.Poll(30*time.Second, func() error {
		for _, pod := range []*lab.Pod{in, out} {
			is, err := b.isEnrolled(pod)
			if err != nil {
				return err
			}
			if is != (pod == in) {
				return fmt.Errorf("pod %s is enrolled: %t", pod.Name, is)
			}
		}
		return nil
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
