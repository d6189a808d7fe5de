// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestDumpHasTheKeysThatAreRead holds the golden file of TestDump against the table of ambient section 9.4.
func TestDumpHasTheKeysThatAreRead(t *testing.T) {
	text, err := os.ReadFile("testdata/dump.want.json")
	if err != nil {
		t.Fatal(err)
	}
	var dump map[string]json.RawMessage
	if err := json.Unmarshal(text, &dump); err != nil {
		t.Fatal(err)
	}
	for kind, want := range map[string]string{
		"workloads": "uid name namespace serviceAccount trustDomain workloadIps protocol network networkMode networkGateway waypoint node workloadName workloadType canonicalName canonicalRevision clusterId locality status hostname capacity nativeTunnel applicationTunnel authorizationPolicies services",
		"services":  "name namespace hostname vips cidrVips ports endpoints subjectAltNames waypoint weightedWaypoints loadBalancer ipFamilies canonical visibility",
		"policies":  "name namespace scope action rules dryRun",
	} {
		var entries []map[string]any
		if err := json.Unmarshal(dump[kind], &entries); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		keys := map[string]bool{}
		for _, e := range entries {
			for key := range e {
				keys[key] = true
			}
		}
		wanted := strings.Fields(want)
		slices.Sort(wanted)
		if got := slices.Sorted(maps.Keys(keys)); !slices.Equal(got, wanted) {
			t.Errorf("%s:\ngot  %v\nwant %v", kind, got, wanted)
		}
	}
	if _, ok := dump["stagedServices"]; !ok {
		t.Error("no stagedServices")
	}
}
