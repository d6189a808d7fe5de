// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"os"
	"strings"
)

// Lines returns the lines in the log of a process that have all of parts; none if there is no such log.
func (l *Lab) Lines(process string, parts ...string) (found []string) {
	data, _ := os.ReadFile(l.LogPath(process))
lines:
	for line := range strings.Lines(string(data)) {
		for _, part := range parts {
			if !strings.Contains(line, part) {
				continue lines
			}
		}
		found = append(found, strings.TrimSpace(line))
	}
	return found
}
