// SPDX-License-Identifier: Apache-2.0

package cniconf

import (
	"errors"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/pkg/version"
)

// ErrOnlyEntry is returned by Remove for a list that has no plugin but ours: without it, it would be no valid list.
var ErrOnlyEntry = errors.New("our entry is the only one in the list")

// oldestVersion is the first version of the CNI specification that hands one plugin's result to the next as we need it.
const oldestVersion = "0.3.1"

// wrapVersion is what a bare configuration without a version gets when it becomes a list.
const wrapVersion = "0.3.1"

// Insert returns conf with our entry as the last of its plugins.
//
// An entry of ours that is there already is replaced where it stands, and further ones are taken out, so that inserting
// twice is inserting once; only at the head of the list, where it could not work, it does not stay. All other bytes stay as they are. conf may also be the configuration of a single plugin
// (.conf), which is first wrapped into a list of the same name.
func Insert(conf []byte, e Entry) ([]byte, error) {
	l, err := parse(conf)
	if err != nil {
		return nil, err
	}
	if l.bare {
		if _, l, err = l.wrap(); err != nil {
			return nil, err
		}
	}
	if err := l.chainable(); err != nil {
		return nil, err
	}
	ours := l.ours()
	for len(ours) > 1 || len(ours) == 1 && ours[0] == 0 && len(l.plugins) > 1 {
		if l, err = parse(l.without(ours[0])); err != nil {
			return nil, err
		}
		ours = l.ours()
	}
	if len(ours) == 0 {
		return l.appendEntry(e)
	}
	return l.replace(ours[0], e)
}

// Remove returns conf without our entry: byte for byte what it was before [Insert], unless that had to wrap it. Without
// an entry of ours conf is returned as it is.
//
// Returns an error wrapping [ErrOnlyEntry] if no other plugin would be left.
func Remove(conf []byte) ([]byte, error) {
	l, err := parse(conf)
	if err != nil {
		return nil, err
	}
	ours := l.ours()
	if len(ours) > 0 && len(ours) == len(l.plugins) {
		return nil, fmt.Errorf("plugins: %w", ErrOnlyEntry)
	}
	for _, i := range slices.Backward(ours) {
		conf = l.without(i)
		if l, err = parse(conf); err != nil {
			return nil, err
		}
	}
	return conf, nil
}

// Contains tells whether conf is a valid configuration with an entry of ours.
func Contains(conf []byte) bool {
	l, err := parse(conf)
	return err == nil && len(l.ours()) > 0
}

// chainable tells whether a plugin like ours works at the end of this list.
func (l *list) chainable() error {
	versions := l.versions
	if l.version != "" {
		versions = append(slices.Clone(versions), l.version)
	}
	if len(versions) == 0 {
		return fmt.Errorf("cniVersion is missing, which means 0.1.0; the plugin needs %s or newer", oldestVersion)
	}
	for _, v := range versions {
		if ok, err := version.GreaterThanOrEqualTo(v, oldestVersion); err == nil && ok {
			return nil
		}
	}
	return fmt.Errorf("cniVersion %q: the plugin needs %s or newer", versions[len(versions)-1], oldestVersion)
}
