// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Set is the state of a source that has objects one by one: an API server. Whoever watches that puts them in, and then
// publishes.
//
// As with files, an object that cannot be carried out keeps the last state in which it could; one that never could has
// none. Policies are read such that a mistake in one lets nobody in. Safe for concurrent use.
type Set struct {
	rules Rules
	log   *slog.Logger

	current atomic.Pointer[Snapshot]
	subs    subscribers

	mu      sync.Mutex // guards what follows
	objects *folder    // of no folder: a "file" is one object, by kind and name
	dirty   bool
}

// NewSet returns an empty one. log may be nil.
func NewSet(rules Rules, log *slog.Logger) *Set {
	if log == nil {
		log = slog.Default()
	}
	s := &Set{rules: rules, log: log, objects: &folder{files: map[string]*file{}}, dirty: true}
	s.Publish()
	return s
}

// Snapshot implements [Source].
func (s *Set) Snapshot() *Snapshot { return s.current.Load() }

// Subscribe implements [Source].
func (s *Set) Subscribe() (changes <-chan struct{}, cancel func()) { return s.subs.add() }

// Put takes an object in, in place of an earlier one of the same kind and name: a Namespace, Pod, Service, Node or
// EndpointSlice, or an unstructured policy. It must not be changed afterwards. Nobody sees it before Publish. The error
// says what is wrong with the object, and for a policy what that does.
func (s *Set) Put(object any) error {
	key, err := keyOf(object)
	if err != nil {
		return err
	}
	objs, ferr := accept(key, object)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirty = true
	before := s.objects.files[key]
	f := &file{path: key, objs: objs, err: ferr}
	s.objects.files[key] = f
	if ferr == nil {
		s.warn(f, before)
		return nil
	}
	if f.objs == nil && before != nil {
		f.objs = before.objs
	}
	if f.objs == nil {
		f.objs = &objects{}
	}
	s.log.Error("object cannot be carried out as it is", "object", key, "error", ferr.Err, "objects_in_force", f.objs.count())
	return ferr
}

// warn logs what an object says without effect, once.
func (s *Set) warn(f, before *file) {
	said := func(w *FileError) bool {
		return before != nil && slices.ContainsFunc(before.objs.warnings, func(b *FileError) bool { return b.Error() == w.Error() })
	}
	for _, w := range f.objs.warnings {
		if !said(w) {
			s.log.Warn("object is not carried out as it is written", "object", f.path, "what", w.Err)
		}
	}
}

// Delete takes out the object of this kind and name.
func (s *Set) Delete(object any) error {
	key, err := keyOf(object)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objects.files[key] != nil {
		delete(s.objects.files, key)
		s.dirty = true
	}
	return nil
}

// Publish has Snapshot show what was put and deleted, if anything was.
func (s *Set) Publish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.dirty {
		return
	}
	s.dirty = false
	next := snapshot(s.objects, &folder{})
	next.Rules = s.rules
	s.current.Store(next)
	s.subs.tell()
}

// keyOf is "Pod shop/web".
func keyOf(object any) (string, error) {
	switch o := object.(type) {
	case *corev1.Namespace:
		return "Namespace " + o.Name, nil
	case *corev1.Pod:
		return "Pod " + nameOf(&o.ObjectMeta).String(), nil
	case *corev1.Service:
		return "Service " + nameOf(&o.ObjectMeta).String(), nil
	case *corev1.Node:
		return "Node " + o.Name, nil
	case *discoveryv1.EndpointSlice:
		return "EndpointSlice " + nameOf(&o.ObjectMeta).String(), nil
	case *unstructured.Unstructured:
		return fmt.Sprintf("%s %s/%s", o.GetKind(), o.GetNamespace(), o.GetName()), nil
	}
	return "", fmt.Errorf("%T is no object that this control plane reads", object)
}

// accept checks an object as it is checked in a file.
func accept(key string, object any) (*objects, *FileError) {
	objs, at := &objects{}, Origin{Path: key}
	c := checker{doc: &yaml.Node{}, at: at, warn: &objs.warnings, live: true}
	var err error
	switch o := object.(type) {
	case *corev1.Namespace:
		objs.namespaces = []*Namespace{{o, at}}
	case *corev1.Pod:
		objs.pods = []*Pod{{o, at}}
		err = c.pod(o)
	case *corev1.Service:
		objs.services = []*Service{{o, at}}
		err = c.service(o)
	case *corev1.Node:
		objs.nodes = []*Node{{o, at}}
	case *discoveryv1.EndpointSlice:
		objs.slices = []*EndpointSlice{{o, at}}
		err = c.endpointSlice(o)
	case *unstructured.Unstructured:
		return acceptPolicy(key, bare(o))
	}
	if err != nil {
		return nil, inFile(key, nil, 0, err)
	}
	return objs, nil
}

// bare leaves of a policy what decides.
func bare(o *unstructured.Unstructured) map[string]any {
	spec := o.Object["spec"]
	if spec == nil {
		spec = map[string]any{} // The API admits a policy without one, and it is as good as empty.
	}
	metadata := map[string]any{"name": o.GetName(), "namespace": o.GetNamespace(), "creationTimestamp": o.GetCreationTimestamp()}
	if a := o.GetAnnotations(); a != nil {
		metadata["annotations"] = a
	}
	return map[string]any{"apiVersion": o.GetAPIVersion(), "kind": o.GetKind(), "metadata": metadata, "spec": spec}
}
