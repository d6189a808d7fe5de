// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/sluice-mesh/sluice/ztunnel/identity"
	"github.com/sluice-mesh/sluice/ztunnel/telemetry"
)

// Verdict is what was decided about a connection: how it was carried, or why it was refused. The same word is in the
// access log and in the metric sluice_connection_verdicts_total.
type Verdict string

// How a connection is carried.
const (
	// VerdictMTLS: in HBONE, both ends authenticated.
	VerdictMTLS Verdict = "mtls"
	// VerdictPlaintext: in clear, because the other end is known to speak no HBONE.
	VerdictPlaintext Verdict = "plaintext"
	// VerdictPassthrough: in clear to an address that nobody told ztunnel about.
	VerdictPassthrough Verdict = "passthrough"
	// VerdictLocal: in clear, because a service chose its own client. It does not leave the pod, and no policy is asked, as
	// for a pod that calls its own address.
	VerdictLocal Verdict = "local"
)

// Why a connection is refused.
const (
	VerdictHiddenAddress   Verdict = "refused-hidden-address"
	VerdictReservedPort    Verdict = "refused-reserved-port"
	VerdictUnknownWorkload Verdict = "refused-unknown-workload"
	VerdictNoEndpoint      Verdict = "refused-no-healthy-upstream"
	VerdictNoAddress       Verdict = "refused-no-valid-destination"
	VerdictOtherNetwork    Verdict = "refused-other-network"
	VerdictWaypoint        Verdict = "refused-no-waypoint"
	VerdictConnect         Verdict = "refused-connect"
	VerdictTLS             Verdict = "refused-tls"
	VerdictIdentity        Verdict = "refused-identity"
	VerdictPeer            Verdict = "refused-by-peer"
	VerdictPolicy          Verdict = "refused-policy"
	VerdictPolicyChange    Verdict = "refused-policy-change"
	VerdictAuthority       Verdict = "refused-authority"
	VerdictAddressMismatch Verdict = "refused-ip-mismatch"
	VerdictAppTunnel       Verdict = "refused-application-tunnel"
	VerdictStopped         Verdict = "refused-stopped"
	// VerdictLimit: the pod uses its share of the node's connections or file descriptors.
	VerdictLimit   Verdict = "refused-limit"
	VerdictRevoked Verdict = "refused-revoked"
)

// Errors that end connections which were already carried.
var (
	errPolicyChange = errors.New("connection closed due to policy change")
	errPodStopped   = errors.New("connection closed: the pod is no longer served")
	errForcedDrain  = errors.New("connection closed: forced drain")
)

// refusal is the error of a connection that was refused.
type refusal struct {
	verdict Verdict
	flags   telemetry.Flags
	// policy is the `namespace/name` of the policy that refused.
	policy string
	err    error
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// refuse returns a refusal with the reference's flag for connections that found nobody to serve them.
func refuse(v Verdict, format string, args ...any) *refusal {
	return &refusal{verdict: v, flags: telemetry.FlagConnect, err: fmt.Errorf(format, args...)}
}

func (r *refusal) flagged(f telemetry.Flags) *refusal {
	r.flags = f
	return r
}

// policyChange turns the refusal of a policy into that of a connection which was allowed before.
func policyChange(err error) error {
	changed := &refusal{verdict: VerdictPolicyChange, flags: telemetry.FlagDeny, err: errPolicyChange}
	var r *refusal
	if errors.As(err, &r) {
		changed.policy = r.policy
	}
	return changed
}

// verdictOf returns what err says about the connection; carried is how the connection would be carried without it.
func verdictOf(err error, carried Verdict) (v Verdict, f telemetry.Flags, policy string) {
	var r *refusal
	var revoked *identity.RevokedError
	switch {
	case errors.As(err, &revoked): // in the handshake, or since
		return VerdictRevoked, telemetry.FlagCertRevoked, ""
	case errors.As(err, &r):
		return r.verdict, r.flags, r.policy
	case errors.Is(err, errPodStopped), errors.Is(err, errForcedDrain):
		return cmp.Or(carried, VerdictStopped), telemetry.FlagNone, ""
	case err != nil:
		return carried, telemetry.FlagConnect, ""
	}
	return carried, telemetry.FlagNone, ""
}
