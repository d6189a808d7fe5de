// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// fickle is a runtime that tells of the folders /var/cni once it may.
type fickle struct {
	runtime.UnimplementedRuntimeServiceServer
	may chan struct{} // closed when it may
}

func (f *fickle) Version(ctx context.Context, _ *runtime.VersionRequest) (*runtime.VersionResponse, error) {
	select {
	case <-f.may:
		return &runtime.VersionResponse{RuntimeName: "fickle", RuntimeVersion: "1"}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (f *fickle) Status(context.Context, *runtime.StatusRequest) (*runtime.StatusResponse, error) {
	return &runtime.StatusResponse{Info: map[string]string{"cniconfig": `{"PluginDirs":["/var/cni/bin"],"PluginConfDir":"/var/cni/net.d"}`}}, nil
}

// serve has it listen where containerd does on the node.
func (f *fickle) serve(k *kept) {
	k.t.Helper()
	k.write("run/containerd/keep", "")
	l, err := net.Listen("unix", k.path("run/containerd/containerd.sock"))
	if err != nil {
		k.t.Fatal(err)
	}
	s := grpc.NewServer()
	runtime.RegisterRuntimeServiceServer(s, f)
	go func() { _ = s.Serve(l) }()
	k.t.Cleanup(s.Stop)
}

// movesToVar waits until plugin and entry are where the runtime says, and nowhere else.
func movesToVar(k *kept) {
	k.t.Helper()
	testutil.Eventually(k.t, 20*time.Second, func() error {
		list, err := os.ReadFile(k.path("var/cni/net.d/10-net.conflist"))
		if err != nil || !strings.Contains(string(list), "sluice-cni") {
			return fmt.Errorf("conflist: %s, %v", list, err)
		}
		if _, err := os.Stat(k.path("var/cni/bin/sluice-cni")); err != nil {
			return err
		}
		if list, err := os.ReadFile(k.path("etc/cni/net.d/10-net.conflist")); err != nil || strings.Contains(string(list), "sluice-cni") {
			return fmt.Errorf("conflist of the folder that was guessed: %s, %v", list, err)
		}
		if _, err := os.Stat(k.path("opt/cni/bin/sluice-cni")); !os.IsNotExist(err) {
			return fmt.Errorf("plugin in the folder that was guessed: %v", err)
		}
		return nil
	})
}

// A runtime that does not answer yet, as on a node that starts, is waited for.
func TestKeeperWaitsForASlowRuntime(t *testing.T) {
	f := &fickle{may: make(chan struct{})}
	k := newKept(t, func(k *kept) {
		k.write("var/cni/net.d/10-net.conflist", keptConf)
		k.write("var/cni/bin/ptp", "")
		f.serve(k)
	})
	testutil.Eventually(t, 20*time.Second, func() error {
		if !strings.Contains(k.log.String(), errSlow.Error()) {
			return fmt.Errorf("no word of the slow runtime in the log:\n%s", k.log.String())
		}
		return nil
	})
	if k.inPlace() == nil {
		t.Error("folders were guessed although the runtime is there")
	}
	close(f.may)
	movesToVar(k)
	if k.keeper.reinstall.Load() != 0 {
		t.Error("the first installation counts as one that was overwritten")
	}
}

// A runtime that comes later, and names other folders than those that were guessed, is believed.
func TestKeeperGoesWhereTheRuntimeSays(t *testing.T) {
	f := &fickle{may: make(chan struct{})}
	close(f.may)
	k := newKept(t, func(k *kept) {
		k.tune = func(k *keeper) { k.askEvery = 0 }
	})
	k.wantInPlace()
	k.write("var/cni/net.d/10-net.conflist", keptConf)
	k.write("var/cni/bin/ptp", "")
	f.serve(k)
	k.write("etc/cni/net.d/99-other.conf", "{}") // has the keeper look
	movesToVar(k)
	if k.keeper.reinstall.Load() != 0 {
		t.Error("the move counts as an overwritten entry")
	}
}
