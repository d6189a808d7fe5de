// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Whoever asks for figures, and however often: gathering them is not done more than once a second, and few wait for it.
func TestFiguresCostLittleWhoeverAsks(t *testing.T) {
	var gathered atomic.Int32
	release := make(chan struct{})
	s := httptest.NewServer(figures(prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		gathered.Add(1)
		<-release
		return nil, nil
	})))
	defer s.Close()
	codes := make(chan int)
	for range 2 * maxScrapes {
		go func() {
			code, _ := get(t, s.URL)
			codes <- code
		}()
	}
	for range maxScrapes {
		if code := <-codes; code != http.StatusServiceUnavailable {
			t.Errorf("one of those too many got %d", code)
		}
	}
	close(release)
	answered := 0
	for range maxScrapes {
		if <-codes == http.StatusOK {
			answered++
		}
	}
	if answered != maxScrapes || gathered.Load() > 2 { // 2 on a machine that stood still for a second
		t.Errorf("%d of %d answered, gathered %d times; want all, and once", answered, maxScrapes, gathered.Load())
	}
}
