// SPDX-License-Identifier: Apache-2.0

package hbone

// Windows bound what a peer may send ahead, in bytes. Zero values mean the defaults.
type Windows struct {
	// Stream is what the window of a stream may grow to. Zero means 4 MiB. Streams begin with 512 KiB, or with Stream if
	// that is less.
	Stream int
	// Connection is the window of a whole connection. Zero means 16 MiB; it cannot be less than 65535.
	Connection int
	// Frame is the largest frame taken. Zero means 1 MiB; it can be from 16384 to 2^24-1.
	Frame int
}

// filled has no zero values, and none that HTTP/2 cannot say.
func (w Windows) filled() Windows {
	return Windows{
		Stream:     min(orDefault(w.Stream, maxStreamWindow), maxWindow),
		Connection: min(max(orDefault(w.Connection, ourConnWindow), defaultWindow), maxWindow),
		Frame:      min(max(orDefault(w.Frame, ourMaxFrame), minMaxFrame), maxMaxFrame),
	}
}

// first is the window that a stream begins with.
func (w Windows) first() int { return min(ourStreamWindow, w.Stream) }
