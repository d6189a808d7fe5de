// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http/httptest"
	"testing"
)

func TestRecentConnections(t *testing.T) {
	l := NewAccessLog(slog.New(slog.DiscardHandler))
	for i := range maxRecent + 3 {
		l.Complete(&Access{Direction: Outbound, Sent: uint64(i), Verdict: "mtls"})
	}
	l.Failed(&Access{Direction: Inbound, Verdict: "refused-policy", Policy: "shop/deny", Err: errors.New("denied")})
	page := httptest.NewRecorder()
	admin := &Admin{Recent: l.Recent}
	admin.Handler().ServeHTTP(page, httptest.NewRequest("GET", "/debug/connections", nil))
	var got []Recent
	if err := json.Unmarshal(page.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if len(got) != maxRecent || got[0].Sent != 4 {
		t.Fatalf("got %d connections from %+v on, want %d from the fifth on", len(got), got[0], maxRecent)
	}
	if last := got[maxRecent-1]; last.Policy != "shop/deny" || last.Error != "denied" || last.Direction != Inbound {
		t.Errorf("got %+v", last)
	}
}
