// SPDX-License-Identifier: Apache-2.0

// Package dns answers the queries of pods whose queries are captured: those for names of the mesh by what the control
// plane says, all others by what the very server says that the pod asked.
//
//	app ──UDP, TCP 53──► Server ──► Resolver ──► A, AAAA of services
//	     ◄─ from the server's ─┤  └─► forward ──► the server asked, from inside the pod
//	        address            └─ SERVFAIL: too busy, or nobody answers
package dns
