// SPDX-License-Identifier: Apache-2.0

// Package cniconf puts our entry into a node's CNI configuration and takes it out again, and puts the plugin beside the
// others.
//
// [Insert] and [Remove] are pure: bytes to bytes, leaving every byte alone that is not about our entry. [Install] and
// [Uninstall] apply them to the file that the runtime uses, by rename. [InstallOwned]
// and [InstallDropIn] leave that file alone and write one of our own. All of them may be repeated.
package cniconf
