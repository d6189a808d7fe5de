// SPDX-License-Identifier: Apache-2.0

// Package nodeapi is what the node's processes ask the agent, and both ends of the socket they ask it over.
//
// The CNI plugin asks whether a pod is enrolled and has it served; ztunnel asks for a pod's listening sockets; the
// command line asks for status and flows. One connection carries one [Request] and one [Response], each a single
// SOCK_SEQPACKET packet of JSON, with file descriptors as SCM_RIGHTS; after the answer to [VerbFlows] more packets come. Only root, and the user that the agent runs as, may ask.
//
//	plugin, ztunnel, CLI ──Request (+fds)──► /run/sluice/agent.sock ──► agent
//	                     ◄─Response (+fds)──
package nodeapi

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
)

// Version is the version of the messages. A side that reads another one refuses it.
const Version = 1

// MaxMessageBytes bounds a message; it stays below the kernel's default socket buffer, which bounds a packet.
const MaxMessageBytes = 128 << 10

// MaxFDs bounds the descriptors of a message.
const MaxFDs = 16

// Verb says what a request wants.
type Verb string

const (
	// VerbDecide asks whether Request.Pod is enrolled. Answer: Response.Decision.
	VerbDecide Verb = "decide"
	// VerbServe asks to have the pod, whose programs are attached by now, served by ztunnel. The answer comes when
	// ztunnel does serve it, or with an error after which nothing of the agent's is left.
	VerbServe Verb = "serve"
	// VerbRelease says that the pod's sandbox is gone or its ADD was undone. It succeeds for unknown pods.
	VerbRelease Verb = "release"
	// VerbGC names the attachments that still exist (Request.Valid); the agent forgets all others.
	VerbGC Verb = "gc"
	// VerbListeners asks for the listening sockets of the pod with Request.Pod.UID. The request may offer, as its own
	// descriptors named by Request.Slots, the ones the caller holds already. Answer: Response.Slots and descriptors.
	VerbListeners Verb = "listeners"
	// VerbStatus asks how the agent and its pods are. Answer: Response.Status.
	VerbStatus Verb = "status"
	// VerbFlows asks for the connections of enrolled pods. After the answer comes a packet of JSON for each that is known
	// and, with Request.Follow, for each event from then on, until the caller closes the connection.
	VerbFlows Verb = "flows"
)

// Request is one question.
type Request struct {
	Version int  `json:"version"`
	Verb    Verb `json:"verb"`
	Pod     *Pod `json:"pod,omitempty"`
	// DryRun only asks (decide): the agent answers as it would, but keeps what it knows of the pod.
	DryRun bool `json:"dryRun,omitempty"`
	// Network is the CNI network's name (GC).
	Network string `json:"network,omitempty"`
	// Valid are the attachments that exist (GC); an empty list means that none does.
	Valid []Attachment `json:"valid,omitempty"`
	// Slots name the descriptors that come with the request, in their order (listeners).
	Slots []string `json:"slots,omitempty"`
	// Follow keeps the stream going after what is known already (flows).
	Follow bool `json:"follow,omitempty"`
	// After continues a status listing behind the pod with this UID.
	After string `json:"after,omitempty"`
}

// Pod is a pod's sandbox as CNI ADD and DEL know it.
type Pod struct {
	// UID is the Kubernetes pod UID; the container id where the runtime passes none.
	UID         string `json:"uid"`
	Namespace   string `json:"namespace"`
	Name        string `json:"name"`
	ContainerID string `json:"containerID"`
	// Netns is the path of the network namespace, as seen from the runtime's mount namespace. Empty on release when it
	// is gone already.
	Netns string `json:"netns,omitempty"`
	// Network is the CNI network's name.
	Network    string      `json:"network,omitempty"`
	Interfaces []Interface `json:"interfaces,omitempty"`
}

// Interface is one interface of a pod, from the result of the plugins before ours.
type Interface struct {
	// Name is its name inside the pod.
	Name string `json:"name"`
	// HostIfindex is the host's end of the link in the node's namespace; 0 when it has none (macvlan, SR-IOV).
	HostIfindex int            `json:"hostIfindex,omitempty"`
	Addresses   []netip.Prefix `json:"addresses,omitempty"`
}

// Addresses returns every address of the pod, in order, without prefix lengths.
func (p *Pod) Addresses() []netip.Addr {
	var addrs []netip.Addr
	for _, i := range p.Interfaces {
		for _, a := range i.Addresses {
			addrs = append(addrs, a.Addr().Unmap())
		}
	}
	return addrs
}

// Attachment identifies a sandbox's interface (CNI 1.1, key cni.dev/valid-attachments).
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}

// Response is the answer to one Request. Descriptors come beside it.
type Response struct {
	Version  int             `json:"version"`
	Error    *Error          `json:"error,omitempty"`
	Decision *Decision       `json:"decision,omitempty"`
	Slots    []string        `json:"slots,omitempty"`
	Status   json.RawMessage `json:"status,omitempty"`
}

// Decision says what is to be done with a pod.
type Decision struct {
	Enrolled bool `json:"enrolled"`
	// Reason says why, in words for a log line.
	Reason string `json:"reason,omitempty"`
	// PinID is the name of the pod's folder of pins. Set when enrolled.
	PinID string `json:"pinID,omitempty"`
	// Interfaces is what to attach to: every interface that is known of the sandbox, from this ADD and from the ADDs of
	// other networks. Set when enrolled; empty from an agent that predates the field, then the ADD's own.
	Interfaces []Interface `json:"interfaces,omitempty"`
	// CaptureAll captures every TCP connection, also to addresses outside the mesh.
	CaptureAll bool `json:"captureAll,omitempty"`
	// CaptureDNS hands the pod's DNS queries to ztunnel's resolver.
	CaptureDNS bool `json:"captureDNS,omitempty"`
	// BypassInbound leaves connections to the pod to the app, unseen by ztunnel.
	BypassInbound bool `json:"bypassInbound,omitempty"`
	// ExcludeCIDRs and ExcludePorts are destinations that are not captured: what is in a CIDR, or on a port.
	ExcludeCIDRs []netip.Prefix `json:"excludeCIDRs,omitempty"`
	ExcludePorts []uint16       `json:"excludePorts,omitempty"`
}

// Code classifies an Error for a caller that must act on it.
type Code string

const (
	// CodeBadRequest means that asking again the same way is useless.
	CodeBadRequest Code = "bad-request"
	// CodeTryAgain means that the node is not ready for this yet.
	CodeTryAgain Code = "try-again"
	// CodeNotFound means that the agent knows no such pod.
	CodeNotFound Code = "not-found"
	// CodeInternal is anything else; the agent's log says more.
	CodeInternal Code = "internal"
)

// Error is a refusal by the agent, as opposed to a failure to reach it.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return fmt.Sprintf("agent: %s", e.Message) }

// Errorf makes an Error.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Errorf(format, args...).Error()}
}

// validate checks what every verb relies on, so that handlers need not.
func (r *Request) validate() *Error {
	if r.Version != Version {
		return Errorf(CodeBadRequest, "version %d: this agent speaks version %d; plugin, ztunnel and agent must be of one release", r.Version, Version)
	}
	switch r.Verb {
	case VerbDecide, VerbServe:
		return r.Pod.validate(true)
	case VerbRelease:
		return r.Pod.validate(false)
	case VerbListeners:
		if r.Pod == nil || r.Pod.UID == "" {
			return Errorf(CodeBadRequest, "listeners: pod.uid is missing")
		}
		return validateID("pod.uid", r.Pod.UID)
	case VerbGC, VerbStatus, VerbFlows:
		return nil
	}
	return Errorf(CodeBadRequest, "unknown verb %q", r.Verb)
}

func (p *Pod) validate(alive bool) *Error {
	if p == nil {
		return Errorf(CodeBadRequest, "pod is missing")
	}
	if err := validateID("pod.containerID", p.ContainerID); err != nil {
		return err
	}
	if p.UID != "" {
		if err := validateID("pod.uid", p.UID); err != nil {
			return err
		}
	}
	// Names end up in file names. They may be empty: not every sandbox is a Kubernetes pod.
	for what, name := range map[string]string{"pod.namespace": p.Namespace, "pod.name": p.Name} {
		if name == "" {
			continue
		}
		if err := validateID(what, name); err != nil {
			return err
		}
	}
	if alive && !strings.HasPrefix(p.Netns, "/") {
		return Errorf(CodeBadRequest, "pod.netns: %q is not an absolute path", p.Netns)
	}
	for _, i := range p.Interfaces {
		if i.Name == "" || i.Name == "." || i.Name == ".." || len(i.Name) > 15 || strings.ContainsAny(i.Name, "/ ") {
			return Errorf(CodeBadRequest, "pod.interfaces: %q is not an interface name", i.Name)
		}
	}
	return nil
}

// maxIDBytes has room for a pod's name, which may be 253 bytes long, and leaves some of a file name's 255 bytes.
const maxIDBytes = 253

// validateID keeps ids usable as file names: they come from a runtime, and end up in paths.
func validateID(what, id string) *Error {
	if id == "" {
		return Errorf(CodeBadRequest, "%s is missing", what)
	}
	if len(id) > maxIDBytes || strings.Trim(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" || strings.Trim(id, ".") == "" {
		return Errorf(CodeBadRequest, "%s: %q is not an id (letters, digits, '-', '_', '.', at most %d)", what, id, maxIDBytes)
	}
	return nil
}
