// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"net/http"
	"time"

	"k8s.io/client-go/rest"
)

// readPause is between two tries of a request of which the API took no notice.
const readPause = time.Second

// Patient returns a copy of c whose reads wait for an API that does not answer at all, and are tried again every second.
// Informers would wait for up to a minute after a long outage, each by itself, and a control plane that does not know a
// pod yet refuses it its certificate. It is for the few processes that serve a cluster: those of all nodes would together
// overwhelm an API that has just come back.
func Patient(c *rest.Config) *rest.Config {
	c = rest.CopyConfig(c)
	c.Wrap(func(next http.RoundTripper) http.RoundTripper { return &patient{next} })
	return c
}

type patient struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (p *patient) RoundTrip(r *http.Request) (*http.Response, error) {
	for {
		answer, err := p.RoundTripper.RoundTrip(r)
		if err == nil || r.Method != http.MethodGet || r.Context().Err() != nil {
			return answer, err
		}
		select {
		case <-r.Context().Done():
			return nil, err
		case <-time.After(readPause):
		}
	}
}
