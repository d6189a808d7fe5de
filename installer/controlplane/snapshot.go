// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"fmt"
	"slices"
	"strings"
)

// Snapshot is the state of both folders at one moment. It never changes; neither may whoever reads it change it.
type Snapshot struct {
	Namespaces map[string]*Namespace
	// Pods are the pods of the manifests folder: what the user says of a pod, whether or not it runs.
	Pods map[Name]*Pod
	// Workloads are the enrolled pods of all nodes: the files of the workloads folder, with labels and containers taken
	// from the pod's manifest where there is one, since that is what a user edits.
	Workloads map[Name]*Pod
	Services  map[Name]*Service
	// Nodes tell where pods are; EndpointSlices which addresses a Service has that selects no pods. Files have neither.
	Nodes          map[string]*Node
	EndpointSlices map[Name]*EndpointSlice
	// PeerAuthentications and AuthorizationPolicies are ordered oldest first, then by name.
	PeerAuthentications   []*PeerAuthentication
	AuthorizationPolicies []*AuthorizationPolicy
	// Rules say which of the pods belong into the mesh.
	Rules Rules
	// Errors are the mistakes in the folders: files that keep an earlier state, or none, and objects named twice.
	Errors []*FileError
	// Warnings are what is legal but not carried out as written.
	Warnings []*FileError
}

// snapshot merges what the files say.
func snapshot(manifests, workloads *folder) *Snapshot {
	b := &builder{
		Snapshot: &Snapshot{
			Namespaces: map[string]*Namespace{}, Pods: map[Name]*Pod{}, Workloads: map[Name]*Pod{}, Services: map[Name]*Service{},
			Nodes: map[string]*Node{}, EndpointSlices: map[Name]*EndpointSlice{},
		},
		seen: map[string]Origin{},
	}
	b.folderError(manifests)
	for _, f := range manifests.sorted() {
		b.manifest(f)
	}
	b.folderError(workloads)
	files := workloads.sorted()
	// Two nodes may both have a file for a pod that moved; the younger file is the present.
	slices.SortStableFunc(files, func(a, c *file) int { return c.modTime.Compare(a.modTime) })
	for _, f := range files {
		b.workload(f)
	}
	slices.SortStableFunc(b.PeerAuthentications, func(x, y *PeerAuthentication) int {
		return byAge(x.CreationTimestamp.Unix(), y.CreationTimestamp.Unix(), nameOf(&x.ObjectMeta), nameOf(&y.ObjectMeta))
	})
	slices.SortStableFunc(b.AuthorizationPolicies, func(x, y *AuthorizationPolicy) int {
		return byAge(x.CreationTimestamp.Unix(), y.CreationTimestamp.Unix(), nameOf(&x.ObjectMeta), nameOf(&y.ObjectMeta))
	})
	return b.Snapshot
}

// byAge orders as istiod does where several policies compete. Zero times sort first, as one: files need no timestamp.
func byAge(x, y int64, xn, yn Name) int {
	if x != y {
		if x < y {
			return -1
		}
		return 1
	}
	return strings.Compare(xn.String(), yn.String())
}

type builder struct {
	*Snapshot
	seen map[string]Origin
}

func (b *builder) folderError(f *folder) {
	if f.err != nil {
		b.Errors = append(b.Errors, &FileError{Origin: Origin{Path: f.dir}, Err: f.err})
	}
}

// first reports whether this is the first object of its kind and name; later ones are errors and are left out.
func (b *builder) first(kind string, name Name, at Origin) bool {
	key := kind + " " + strings.TrimPrefix(name.String(), "/")
	if before, dup := b.seen[key]; dup {
		b.Errors = append(b.Errors, &FileError{Origin: at, Err: fmt.Errorf("%s is already defined at %s, which is used", key, before)})
		return false
	}
	b.seen[key] = at
	return true
}

func (b *builder) file(f *file) {
	if f.err != nil {
		b.Errors = append(b.Errors, f.err)
	}
	b.Warnings = append(b.Warnings, f.objs.warnings...)
}

func (b *builder) manifest(f *file) {
	b.file(f)
	for _, o := range f.objs.namespaces {
		if b.first("Namespace", nameOf(&o.ObjectMeta), o.Origin) {
			b.Namespaces[o.Name] = o
		}
	}
	for _, o := range f.objs.pods {
		if b.first("Pod", nameOf(&o.ObjectMeta), o.Origin) {
			b.Pods[nameOf(&o.ObjectMeta)] = o
		}
	}
	for _, o := range f.objs.services {
		if b.first("Service", nameOf(&o.ObjectMeta), o.Origin) {
			b.Services[nameOf(&o.ObjectMeta)] = o
		}
	}
	for _, o := range f.objs.nodes {
		b.Nodes[o.Name] = o
	}
	for _, o := range f.objs.slices {
		b.EndpointSlices[nameOf(&o.ObjectMeta)] = o
	}
	for _, o := range f.objs.peerAuths {
		if b.first("PeerAuthentication", nameOf(&o.ObjectMeta), o.Origin) {
			b.PeerAuthentications = append(b.PeerAuthentications, o)
		}
	}
	for _, o := range f.objs.authz {
		if b.first("AuthorizationPolicy", nameOf(&o.ObjectMeta), o.Origin) {
			b.AuthorizationPolicies = append(b.AuthorizationPolicies, o)
		}
	}
}

// workload takes the pods of one file of the workloads folder. Nothing but pods belongs there: the folder is written by
// agents, and a policy in it would be one that no user put into force.
func (b *builder) workload(f *file) {
	b.file(f)
	if n := f.objs.count() - len(f.objs.pods); n > 0 {
		b.Errors = append(b.Errors, &FileError{Origin: Origin{Path: f.path}, Err: fmt.Errorf("%d objects are ignored: the workloads folder holds pods only", n)})
	}
	for _, o := range f.objs.pods {
		name := nameOf(&o.ObjectMeta)
		if _, younger := b.Workloads[name]; !younger {
			b.Workloads[name] = merge(o, b.Pods[name])
		}
	}
}

// merge lays what the user's manifest says of a running pod over what its node's agent wrote.
func merge(running, manifest *Pod) *Pod {
	if manifest == nil {
		return running
	}
	pod := *running
	pod.Pod = running.DeepCopy()
	pod.Labels = manifest.Labels
	if len(manifest.Spec.Containers) > 0 {
		pod.Spec.Containers = manifest.Spec.Containers
	}
	return &pod
}
