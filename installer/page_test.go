// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Whoever asks for figures, and however often: gathering them is not done more than once a second, and few wait for it.
func TestFiguresCostLittleWhoeverAsks(t *testing.T) {
	var gathered atomic.Int32
	var once sync.Once
	entered, release := make(chan struct{}), make(chan struct{})
	s := httptest.NewServer(figures(prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		gathered.Add(1)
		once.Do(func() { close(entered) })
		<-release
		return nil, nil
	})))
	defer s.Close()
	codes := make(chan int, 4*maxScrapes)
	ask := func() {
		code, _ := get(t, s.URL)
		codes <- code
	}
	var asking sync.WaitGroup
	for range maxScrapes {
		asking.Go(ask)
	}
	<-entered
	for refused := false; !refused; { // until all that may wait do
		code, _ := get(t, s.URL)
		refused = code == http.StatusServiceUnavailable
	}
	close(release)
	asking.Wait()
	answered := 0
	for range maxScrapes {
		if <-codes == http.StatusOK {
			answered++
		}
	}
	if answered == 0 || gathered.Load() > 2 { // 2 on a machine that stood still for a second
		t.Errorf("%d of %d answered, gathered %d times; want some, and once", answered, maxScrapes, gathered.Load())
	}
}
