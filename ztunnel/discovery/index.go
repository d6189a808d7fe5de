// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"maps"
	"slices"
)

// index finds records by a key that several may share, the best first.
type index[K comparable, V comparable] struct {
	compare func(a, b V) int
	byKey   map[K][]V
}

func newIndex[K, V comparable](compare func(a, b V) int) index[K, V] {
	return index[K, V]{compare: compare, byKey: map[K][]V{}}
}

func (x *index[K, V]) add(k K, v V) {
	list := x.byKey[k]
	at, _ := slices.BinarySearchFunc(list, v, x.compare)
	x.byKey[k] = slices.Insert(list, at, v)
}

func (x *index[K, V]) remove(k K, v V) {
	list := x.byKey[k]
	at := slices.Index(list, v)
	switch {
	case at < 0:
	case len(list) == 1:
		delete(x.byKey, k)
	default:
		x.byKey[k] = slices.Delete(list, at, at+1)
	}
}

func (x *index[K, V]) all(k K) []V { return x.byKey[k] }

func (x *index[K, V]) first(k K) (best V) {
	if list := x.byKey[k]; len(list) > 0 {
		return list[0]
	}
	return best
}

// sortedKeys is for output that must not depend on the order of maps.
func sortedKeys[K comparable, V any](m map[K]V, compare func(a, b K) int) []K {
	return slices.SortedFunc(maps.Keys(m), compare)
}
