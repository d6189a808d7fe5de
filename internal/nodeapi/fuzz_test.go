// SPDX-License-Identifier: Apache-2.0

package nodeapi

import (
	"encoding/json"
	"reflect"
	"testing"
)

// FuzzDecodeRequest is the agent's view: whatever a caller sends is refused, or means the same when sent on.
func FuzzDecodeRequest(f *testing.F) {
	f.Add([]byte(`{"version":1,"verb":"serve","pod":{"uid":"u","namespace":"ns","name":"p","containerID":"c","netns":"/run/netns/p",` +
		`"interfaces":[{"name":"eth0","hostIfindex":7,"addresses":["10.0.0.2/24","fd00::2/64"]}]}}`))
	f.Add([]byte(`{"version":1,"verb":"gc","network":"pods","valid":[{"containerID":"c","ifname":"eth0"}]}`))
	f.Add([]byte(`{"version":1,"verb":"listeners","pod":{"uid":"u"},"slots":["outbound4"]}`))
	f.Add([]byte(`{"version":1,"verb":"release","pod":{"containerID":".."}}`))
	f.Add([]byte(`{"version":1,"verb":"decide","pod":{"containerID":"c","netns":"/x","interfaces":[{"addresses":[""]}]}} x`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var req Request
		if decode(b, &req) != nil || req.validate() != nil {
			return
		}
		if req.Pod != nil {
			req.Pod.Addresses() // must not mind the zero Prefix
		}
		roundTrip(t, &req)
	})
}

// FuzzDecodeResponse is the view of the plugin and of ztunnel.
func FuzzDecodeResponse(f *testing.F) {
	f.Add([]byte(`{"version":1,"decision":{"enrolled":true,"reason":"namespace","pinID":"u","captureAll":true}}`))
	f.Add([]byte(`{"version":1,"error":{"code":"try-again","message":"no ztunnel"}}`))
	f.Add([]byte(`{"version":1,"slots":["outbound4","hbone6"]}`))
	f.Add([]byte(`{"version":1,"status":{"pods":[{}]}}`))
	f.Add([]byte("{\"version\":1,\"error\":{\"message\":\"\xff\\ud800\"}}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var resp Response
		if decode(b, &resp) != nil {
			return
		}
		roundTrip(t, &resp)
	})
}

// roundTrip encodes v, decodes that, and wants the same again: both the value and the bytes.
func roundTrip[T any](t *testing.T, v *T) {
	first, err := json.Marshal(v)
	if err != nil {
		t.Fatalf("encode %+v: %v", v, err)
	}
	var again T
	if err := decode(first, &again); err != nil {
		t.Fatalf("decode %s: %v", first, err)
	}
	second, err := json.Marshal(&again)
	if err != nil || string(first) != string(second) {
		t.Fatalf("first  %s\nsecond %s\nerror %v", first, second, err)
	}
	var third T
	if err := decode(second, &third); err != nil || !reflect.DeepEqual(again, third) {
		t.Fatalf("second %+v\nthird  %+v\nerror %v", again, third, err)
	}
}
