// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

func TestReachFollowsAnOutage(t *testing.T) {
	c := newCluster(t)
	c.namespace("shop", nil)
	var log bytes.Buffer
	r := NewReach(slog.New(slog.NewTextHandler(&log, nil)))
	client := kubernetes.NewForConfigOrDie(r.Follow(c.RESTConfig()))
	ask := func(ctx context.Context) error {
		_, err := client.CoreV1().Namespaces().Get(ctx, "shop", metav1.GetOptions{})
		return err
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := ask(t.Context()); err != nil || r.Outage() != 0 {
		t.Errorf("got %v, an outage of %v", err, r.Outage())
	}
	c.Stop()
	if err := ask(gone); err == nil || r.Outage() != 0 {
		t.Errorf("nobody waits for the answer: got %v, an outage of %v", err, r.Outage())
	}
	for range 3 {
		if err := ask(t.Context()); err == nil || r.Outage() == 0 {
			t.Errorf("without an API: got %v, an outage of %v", err, r.Outage())
		}
	}
	c.Start()
	if err := ask(t.Context()); err != nil || r.Outage() != 0 {
		t.Errorf("with the API again: got %v, an outage of %v", err, r.Outage())
	}
	if strings.Count(log.String(), "does not answer") != 1 || strings.Count(log.String(), "answers again") != 1 {
		t.Error(log.String())
	}
}

func TestReachOfWhatStandsBeforeTheAPI(t *testing.T) {
	status := http.StatusServiceUnavailable
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
	defer s.Close()
	r := NewReach(slog.New(slog.DiscardHandler))
	client := kubernetes.NewForConfigOrDie(r.Follow(&rest.Config{Host: s.URL}))
	_, _ = client.CoreV1().Namespaces().Get(t.Context(), "shop", metav1.GetOptions{})
	if r.Outage() == 0 {
		t.Error("status 503 passes for an answer")
	}
	status = http.StatusForbidden
	_, _ = client.CoreV1().Namespaces().Get(t.Context(), "shop", metav1.GetOptions{})
	if r.Outage() != 0 {
		t.Error("a refusal is no outage")
	}
}

// An outage of hours is logged every minute, an API that comes and goes no more often.
func TestReachRemindsOfAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r := NewReach(slog.New(slog.NewTextHandler(&log, nil)))
		request := httptest.NewRequest(http.MethodGet, "/api", nil)
		for range 120 {
			r.failed(request, errors.New("refused"))
			time.Sleep(time.Second) // in the bubble: no time passes
		}
		if got := log.String(); strings.Count(got, "does not answer") != 2 || !strings.Contains(got, "for=1m0s") || r.Outage() != 2*time.Minute {
			t.Errorf("%s\nan outage of %v", got, r.Outage())
		}
		log.Reset()
		for range 60 {
			r.answered()
			r.failed(request, errors.New("refused"))
			time.Sleep(time.Second)
		}
		if got := log.String(); strings.Count(got, "\n") > 3 {
			t.Error(got)
		}
	})
}
