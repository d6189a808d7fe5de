// SPDX-License-Identifier: Apache-2.0

package hbone

import "sync"

// Sizes of pooled blocks. Bulk data moves in bigBlock and midBlock; a queue of small frames takes smallBlock. Received data
// waits for its reader in the smallest that holds it.
const (
	smallBlock = 2 << 10
	pageBlock  = 16 << 10
	halfBlock  = 32 << 10
	bulkBlock  = 64 << 10
	midBlock   = 128 << 10
	// bigBlock holds one DATA frame of 256 KiB as TLS records, each of them 16 KiB and 22 bytes, with room to spare.
	bigBlock = 272 << 10
)

// block is a pooled buffer; b[r:w] is what it holds. A block has one owner at a time: whoever frees it must not keep it.
type block struct {
	next *block
	pool *sync.Pool
	r, w int
	b    []byte
}

var blockSizes = [...]int{smallBlock, pageBlock, halfBlock, bulkBlock, midBlock, bigBlock}

var blockPools = func() (pools [len(blockSizes)]*sync.Pool) {
	for i, size := range blockSizes {
		pools[i] = newBlockPool(size)
	}
	return pools
}()

func newBlockPool(size int) *sync.Pool {
	p := new(sync.Pool)
	p.New = func() any { return &block{pool: p, b: make([]byte, size)} }
	return p
}

// sizeClass is the index of the smallest size for n bytes, or of the biggest there is.
func sizeClass(n int) int {
	for i, size := range blockSizes {
		if n <= size {
			return i
		}
	}
	return len(blockSizes) - 1
}

// newBlock returns an empty block with room for n bytes, or the biggest there is.
func newBlock(n int) *block { return blockPools[sizeClass(n)].Get().(*block) }

func (b *block) free() {
	b.next, b.r, b.w = nil, 0, 0
	b.pool.Put(b)
}

func (b *block) len() int     { return b.w - b.r }
func (b *block) room() int    { return len(b.b) - b.w }
func (b *block) data() []byte { return b.b[b.r:b.w] }

// append copies p to the end; the caller has checked room.
func (b *block) append(p []byte) { b.w += copy(b.b[b.w:], p) }

// fitted returns a block of the smallest size that holds b's data: b itself, or a copy, in which case b is empty again
// and still the caller's.
func (b *block) fitted() (fit *block, copied bool) {
	n := b.len()
	if blockSizes[sizeClass(n)] >= len(b.b) {
		return b, false
	}
	fit = newBlock(n)
	fit.append(b.data())
	b.r, b.w = 0, 0
	return fit, true
}
