// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/sluice-mesh/sluice/installer/controlplane"
)

const (
	// rootLook is between two looks at the root's Secret.
	rootLook = 10 * time.Second
	// rootRetry is the same while there is no root to work with.
	rootRetry = time.Second
)

// Roots are the mesh's root in its Secret, as it changes. Of several processes one calls Keep, and all call Next. Safe for
// concurrent use.
type Roots struct {
	client                 kubernetes.Interface
	namespace, trustDomain string
	log                    *slog.Logger
	serves                 atomic.Pointer[controlplane.RootPEM] // what Next returned last
}

// NewRoots asks nobody anything yet.
func NewRoots(client kubernetes.Interface, namespace, trustDomain string, log *slog.Logger) *Roots {
	return &Roots{client: client, namespace: namespace, trustDomain: trustDomain, log: log}
}

// Keep has the Secret and the ConfigMap with its certificate be there until ctx ends. A Secret that is deleted meanwhile
// comes back with what it had: a new root would cut the mesh in two.
func (r *Roots) Keep(ctx context.Context) error {
	var held controlplane.RootPEM
	for {
		pause := rootLook
		if serves := r.serves.Load(); held.Key == nil && serves != nil {
			held = *serves // a replica that served before it led knows what was deleted
		}
		root, err := r.ensure(ctx, held)
		if err == nil {
			held, err = root, PublishRoot(ctx, r.client, r.namespace, root)
		}
		if err != nil && ctx.Err() == nil {
			r.log.Error("the mesh's root cannot be kept", "err", err, "again_in", rootRetry)
			pause = rootRetry
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

func (r *Roots) ensure(ctx context.Context, held controlplane.RootPEM) (controlplane.RootPEM, error) {
	if held.Key == nil {
		return Root(ctx, r.client, r.namespace, r.trustDomain)
	}
	return rootOf(r.get(ctx, held))
}

// get returns the Secret, and puts back what is held if it was deleted.
func (r *Roots) get(ctx context.Context, held controlplane.RootPEM) (*corev1.Secret, error) {
	secrets := r.client.CoreV1().Secrets(r.namespace)
	secret, err := secrets.Get(ctx, RootSecret, metav1.GetOptions{})
	if !apierrors.IsNotFound(err) || held.Key == nil {
		return secret, err
	}
	r.log.Warn("the secret of the mesh's root was deleted, and is put back. For a new root stop all control planes first, and delete the configmap too", "secret", RootSecret, "configmap", RootConfigMap)
	return secrets.Create(ctx, newSecret(r.namespace, held), metav1.CreateOptions{})
}

func newSecret(namespace string, root controlplane.RootPEM) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: RootSecret, Namespace: namespace},
		Data:       map[string][]byte{rootKeyField: root.Key, rootCertField: root.Cert},
	}
}

// Next waits until the Secret has a root that can be used and is not held, and returns it. Meanwhile it puts a Secret that
// was deleted back, with what is held: whoever leads may never have had the root. The error is that of ctx.
func (r *Roots) Next(ctx context.Context, held controlplane.RootPEM) (controlplane.RootPEM, error) {
	pause, last := rootLook, ""
	if held.Key == nil {
		pause = rootRetry
	}
	for {
		root, err := rootOf(r.get(ctx, held))
		switch {
		case err == nil && !(bytes.Equal(root.Key, held.Key) && bytes.Equal(root.Cert, held.Cert)):
			r.serves.Store(&root)
			return root, nil
		case err == nil:
			last = ""
		case ctx.Err() == nil && err.Error() != last:
			last = err.Error()
			r.log.Warn("the mesh's root cannot be read; the one that is known stays in force", "known", held.Key != nil, "err", err)
		}
		select {
		case <-ctx.Done():
			return controlplane.RootPEM{}, ctx.Err()
		case <-time.After(pause):
		}
	}
}
