// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/sluice-mesh/sluice/installer/controlplane"
)

// Names of the root's Secret, and of the ConfigMap from which ztunnels know the control plane.
const (
	RootSecret    = "sluice-ca"
	RootConfigMap = "sluice-ca-root-cert"

	rootKeyField  = "root-key.pem"
	rootCertField = "root-cert.pem"
)

// Root returns the mesh's root from its Secret, which it makes if there never was one; of several that try at once, one
// does. A Secret that is there and cannot be used is an error, and so is one that is gone while its certificate is still
// in the ConfigMap: a new root would cut the mesh in two.
func Root(ctx context.Context, client kubernetes.Interface, namespace, trustDomain string) (controlplane.RootPEM, error) {
	secrets := client.CoreV1().Secrets(namespace)
	secret, err := secrets.Get(ctx, RootSecret, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		if err := neverPublished(ctx, client, namespace); err != nil {
			return controlplane.RootPEM{}, err
		}
		made, merr := controlplane.NewRootPEM(trustDomain)
		if merr != nil {
			return controlplane.RootPEM{}, merr
		}
		secret, err = secrets.Create(ctx, newSecret(namespace, made), metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			secret, err = secrets.Get(ctx, RootSecret, metav1.GetOptions{})
		}
	}
	return rootOf(secret, err)
}

// neverPublished returns an error unless no root's certificate is published.
func neverPublished(ctx context.Context, client kubernetes.Interface, namespace string) error {
	_, err := client.CoreV1().ConfigMaps(namespace).Get(ctx, RootConfigMap, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("root key: %w", err)
	}
	return fmt.Errorf("secret %s/%s is missing, but configmap %s has its certificate, which the mesh goes by: restore the secret from a backup, "+
		"or delete the configmap too to start a new mesh root: pods with old and with new certificates cannot speak to each other until all are renewed",
		namespace, RootSecret, RootConfigMap)
}

func rootOf(secret *corev1.Secret, err error) (controlplane.RootPEM, error) {
	if err != nil {
		return controlplane.RootPEM{}, fmt.Errorf("root key: %w", err)
	}
	root := controlplane.RootPEM{Key: secret.Data[rootKeyField], Cert: secret.Data[rootCertField]}
	if err := root.Validate(); err != nil {
		return controlplane.RootPEM{}, fmt.Errorf("secret %s/%s: %w (put its content back; to start a new mesh root, stop all control planes and delete it and configmap %s)", secret.Namespace, RootSecret, err, RootConfigMap)
	}
	return root, nil
}

// PublishRoot writes the root's certificate where ztunnels find it.
func PublishRoot(ctx context.Context, client kubernetes.Interface, namespace string, root controlplane.RootPEM) error {
	maps := client.CoreV1().ConfigMaps(namespace)
	want := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: RootConfigMap, Namespace: namespace},
		Data:       map[string]string{rootCertField: string(root.Cert)},
	}
	have, err := maps.Get(ctx, RootConfigMap, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = maps.Create(ctx, want, metav1.CreateOptions{})
	case err == nil && have.Data[rootCertField] != want.Data[rootCertField]:
		_, err = maps.Update(ctx, want, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("publish root certificate: %w", err)
	}
	return nil
}
