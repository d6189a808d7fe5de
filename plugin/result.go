// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/sluice-mesh/sluice/internal/nodeapi"
)

// prevResult is what the plugins before us made: read for the pod's interfaces and addresses, and given back.
type prevResult struct {
	raw     json.RawMessage  // as it came, but for cniVersion
	same    bool             // raw has the version the result is to have
	result  types.Result     // in its own version
	read    *types100.Result // the same, for reading
	version string           // what the result is to have
}

// parsePrevResult understands a result of any version. version is that of the configuration.
func parsePrevResult(raw json.RawMessage, version string) (*prevResult, error) {
	if kind(raw) != "object" {
		return nil, fmt.Errorf("want an object, got %s", abridged(raw))
	}
	entries, err := members(raw)
	if err != nil {
		return nil, err
	}
	own, err := resultVersion(entries, version)
	if err != nil {
		return nil, err
	}
	p := &prevResult{same: own == version, version: version}
	if p.raw, err = withVersion(entries, own); err != nil {
		return nil, err
	}
	if err := noNulls(entries); err != nil {
		return nil, err
	}
	if p.result, err = create.Create(own, p.raw); err != nil {
		return nil, err
	}
	if p.read, err = types100.NewResultFromResult(p.result); err != nil {
		return nil, err
	}
	return p, complete(p.read)
}

// complete refuses addresses and routes without the one field that makes them one: converted, they would no longer parse.
func complete(r *types100.Result) error {
	var errs []error
	for i, ip := range r.IPs {
		if _, ok := prefixOf(ip.Address); !ok {
			errs = append(errs, fmt.Errorf("ips[%d] has no address", i))
		}
	}
	for i, route := range r.Routes {
		if _, ok := prefixOf(route.Dst); !ok {
			errs = append(errs, fmt.Errorf("routes[%d] has no dst", i))
		}
	}
	return errors.Join(errs...)
}

// resultVersion is the result's own version. Before 1.0.0 a result may leave it out: then it is the configuration's.
func resultVersion(entries []member, version string) (string, error) {
	i := slices.IndexFunc(entries, func(e member) bool { return e.key == "cniVersion" })
	if i < 0 {
		return version, nil
	}
	own, err := text(entries[i].value)
	if err != nil {
		return "", fmt.Errorf("cniVersion: %w", err)
	}
	if own == "" {
		return version, nil
	}
	return own, nil
}

func withVersion(entries []member, version string) (json.RawMessage, error) {
	object := map[string]json.RawMessage{}
	for _, e := range entries {
		object[e.key] = e.value
	}
	var err error
	if object["cniVersion"], err = json.Marshal(version); err != nil {
		return nil, err
	}
	return json.Marshal(object)
}

// noNulls refuses lists with holes: the CNI library's converters would follow the nil pointers.
func noNulls(entries []member) error {
	var errs []error
	for _, e := range entries {
		if kind(e.value) != "array" {
			continue
		}
		var values []json.RawMessage
		if err := json.Unmarshal(e.value, &values); err != nil {
			return err
		}
		for i, v := range values {
			if kind(v) == "null" {
				errs = append(errs, fmt.Errorf("%s[%d] is null", e.key, i))
			}
		}
	}
	return errors.Join(errs...)
}

// PrintTo writes the result in the configuration's version, otherwise unchanged. When no conversion is due that
// includes what this library's types have no field for.
func (p *prevResult) PrintTo(w io.Writer) error {
	if p.same {
		var out bytes.Buffer
		if err := json.Indent(&out, p.raw, "", "    "); err != nil {
			return err
		}
		_, err := out.WriteTo(w)
		return err
	}
	converted, err := p.result.GetAsVersion(p.version)
	if err != nil {
		return err
	}
	return converted.PrintTo(w)
}

// Interfaces returns the interfaces inside the pod, whose namespace is at path, and their addresses. Plugins that list
// none made ifName. An address that names no interface belongs to the first; elsewhere are those that name an interface
// outside the pod, or none there is.
func (p *prevResult) Interfaces(ifName, path string) (out []nodeapi.Interface, elsewhere []netip.Prefix) {
	at := map[int]int{} // index in the result: index in out
	for i, listed := range p.read.Interfaces {
		// CNI 1.1, section "ADD Success": a path. Some write other things: the AWS VPC CNI a number, for an entry that is
		// a note to its own DEL.
		if !sameNamespace(listed.Sandbox, path) {
			continue
		}
		known := slices.IndexFunc(out, func(o nodeapi.Interface) bool { return o.Name == listed.Name })
		if known < 0 {
			known = len(out)
			out = append(out, nodeapi.Interface{Name: listed.Name})
		}
		at[i] = known
	}
	if len(out) == 0 {
		out = append(out, nodeapi.Interface{Name: ifName})
	}
	for _, ip := range p.read.IPs {
		prefix, _ := prefixOf(ip.Address) // complete has seen that it is one
		i, inside := 0, true
		if ip.Interface != nil && len(at) > 0 {
			i, inside = at[*ip.Interface]
		}
		if inside {
			out[i].Addresses = append(out[i].Addresses, prefix)
		} else {
			elsewhere = append(elsewhere, prefix)
		}
	}
	return out, elsewhere
}

func prefixOf(n net.IPNet) (netip.Prefix, bool) {
	addr, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones), true
}
