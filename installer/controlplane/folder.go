// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// maxFileBytes bounds one file; whatever is larger is not a manifest.
const maxFileBytes = 4 << 20

// folder is one watched folder and, file by file, the last state of it that parsed.
//
// Not safe for concurrent use; the catalog's lock guards it.
type folder struct {
	dir   string
	files map[string]*file
	// err says why the folder could not be listed; its files then stay as they were.
	err     error
	scanned bool
	// saved is where the last good content of each file is kept over a restart; nil keeps nothing.
	saved *lastGood
}

// file is one file of a folder.
type file struct {
	path    string
	sum     [sha256.Size]byte
	modTime time.Time
	// objs is the last good state; empty if there never was one.
	objs *objects
	// err says what is wrong with the present content, nil if objs is what it says.
	err *FileError
}

// wanted tells manifests from what editors, copies and mounts leave beside them.
func wanted(name string) bool {
	if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "#") {
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// scan reads the folder again and returns the files whose content is new. The folder's own error is in f.err.
func (f *folder) scan() (changed []*file, removed int) {
	entries, err := os.ReadDir(f.dir)
	if f.err = err; err != nil {
		return nil, 0
	}
	present := make(map[string]bool)
	for _, e := range entries {
		if !wanted(e.Name()) {
			continue
		}
		now, gone := f.read(e.Name())
		if gone {
			continue
		}
		present[e.Name()] = true
		if now != nil {
			f.files[e.Name()] = now
			changed = append(changed, now)
		}
	}
	for name := range f.files {
		if !present[name] {
			delete(f.files, name)
			removed++
		}
	}
	if removed > 0 || !f.scanned {
		f.saved.prune(present) // files may also have gone while nobody ran
	}
	f.scanned = true
	return changed, removed
}

// restore takes up the files that the folder had when it was last read, for when it cannot be. It reports whether there
// are any.
func (f *folder) restore() bool {
	for name, data := range f.saved.all() {
		path := filepath.Join(f.dir, name)
		f.files[name] = &file{path: path, sum: sha256.Sum256(data), objs: f.saved.restore(name, path)}
	}
	return len(f.files) > 0
}

// read returns the file's new state, nil if its content is what it was. gone is set when there is no such file.
func (f *folder) read(name string) (now *file, gone bool) {
	path := filepath.Join(f.dir, name)
	before := f.files[name]
	data, modTime, err := readFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, true
	}
	now = &file{path: path, modTime: modTime, objs: &objects{}}
	if err != nil {
		now.err = &FileError{Origin: Origin{Path: path}, Err: err}
		now.sum = sha256.Sum256([]byte(err.Error()))
	} else {
		now.sum = sha256.Sum256(data)
	}
	if before != nil && before.sum == now.sum {
		before.modTime = modTime
		return nil, false
	}
	if now.err == nil {
		now.parse(data)
	}
	switch {
	case now.err == nil:
		f.saved.keep(name, data)
	case before != nil:
		now.objs = before.objs
	default:
		now.objs = f.saved.restore(name, path)
	}
	return now, false
}

func (f *file) parse(data []byte) {
	if objs, err := parseFile(f.path, data); err != nil {
		f.err = err
	} else {
		f.objs = objs
	}
}

// readFile reads a regular file. It neither blocks on a FIFO nor swallows a device.
func readFile(path string) ([]byte, time.Time, error) {
	r, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, time.Time{}, err
	}
	defer r.Close()
	st, err := r.Stat()
	switch {
	case err != nil:
		return nil, time.Time{}, err
	case !st.Mode().IsRegular():
		return nil, st.ModTime(), errors.New("is not a regular file")
	case st.Size() > maxFileBytes:
		return nil, st.ModTime(), fmt.Errorf("is larger than %d bytes", maxFileBytes)
	}
	data, err := io.ReadAll(io.LimitReader(r, maxFileBytes))
	return data, st.ModTime(), err
}

// sorted lists the files by name: the order in which conflicts are decided.
func (f *folder) sorted() []*file {
	files := make([]*file, 0, len(f.files))
	for _, file := range f.files {
		files = append(files, file)
	}
	slices.SortFunc(files, func(a, b *file) int { return strings.Compare(a.path, b.path) })
	return files
}
