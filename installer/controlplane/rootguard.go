// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"crypto/ecdsa"
	"crypto/x509"
	"fmt"
	"os"
	"syscall"
)

// checkFolder refuses a folder in which others could put a root of theirs in place of ours, whatever the modes of the files.
func checkFolder(dir string) error {
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if mode := st.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("folder %q has mode %#o: others could replace the mesh's root key (chmod go-w)", dir, mode)
	}
	if uid, ours := ownedByUs(st); !ours {
		return fmt.Errorf("folder %q belongs to user %d, who could replace the mesh's root key (chown root)", dir, uid)
	}
	return nil
}

// ownedByUs tells whether a file is root's or this process's own, and whose it is.
func ownedByUs(st os.FileInfo) (uid uint32, ours bool) {
	uid = st.Sys().(*syscall.Stat_t).Uid
	return uid, uid == 0 || int(uid) == os.Geteuid()
}

// loadKey reads the root key, unless others may have read it before, or written it.
func loadKey(path string) (*ecdsa.PrivateKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if mode := st.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%q has mode %#o: others could read the mesh's root key (chmod 600)", path, mode)
	}
	if uid, ours := ownedByUs(st); !ours {
		return nil, fmt.Errorf("%q belongs to user %d, who knows the mesh's root key (chown root, or remove it and its certificate to start a new mesh root)", path, uid)
	}
	block, err := readPEM(f) // the very file that was checked
	if err != nil {
		return nil, err
	}
	key, err := parseKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", path, err)
	}
	return key, nil
}

func parseKey(der []byte) (*ecdsa.PrivateKey, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("key is a %T, not ECDSA", parsed)
	}
	return key, nil
}
