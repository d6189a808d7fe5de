// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// A read that finds no API waits for it, as long as its context lasts; a write fails, since it may have been carried out.
func TestPatientReadsWaitForTheAPI(t *testing.T) {
	c := newCluster(t)
	c.namespace("shop", nil)
	client := kubernetes.NewForConfigOrDie(Patient(c.RESTConfig()))
	c.Stop()

	read := make(chan error, 1)
	go func() {
		_, err := client.CoreV1().Namespaces().Get(t.Context(), "shop", metav1.GetOptions{})
		read <- err
	}()
	_, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "new"}}, metav1.CreateOptions{})
	if err == nil {
		t.Error("a write without an API succeeded")
	}
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := client.CoreV1().Namespaces().Get(short, "shop", metav1.GetOptions{}); err == nil {
		t.Error("a read without an API succeeded")
	}
	if len(read) != 0 {
		t.Fatalf("the read did not wait: %v", <-read)
	}
	c.Start()
	if err := <-read; err != nil {
		t.Errorf("read after the API came back: %v", err)
	}
}
