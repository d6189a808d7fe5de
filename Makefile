# Tools that the distribution provides; Go's own are pinned in go.mod (tool directives).
CLANG        ?= clang
CLANG_FORMAT ?= clang-format
SHELLCHECK   ?= shellcheck

# Of container images: what they are built for, and how they are called. A registry and a tag of your own:
# make image REGISTRY=registry.example.com/mesh TAG=v1
ARCHS    ?= amd64 arm64
REGISTRY ?= localhost
TAG      ?= dev

# sudo takes Go off PATH; and a user's "go env -w" settings stay with the user.
export PATH := $(PATH):/usr/local/go/bin:/usr/lib/go/bin:/snap/bin
ifdef SUDO_USER
GO      ?= $(shell command -v go || su - $(SUDO_USER) -c 'command -v go')
user_env := $(wildcard $(shell getent passwd $(SUDO_USER) | cut -d: -f6)/.config/go/env)
ifneq ($(user_env),)
export GOENV ?= $(user_env)
endif
else
GO      ?= go
endif

comma    := ,
space    := $(empty) $(empty)
binaries := sluice-cni ztunnel sluice-installer
cni      := main/bridge main/ptp main/loopback ipam/host-local meta/portmap
static   := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w'
scripts  := $(shell git ls-files '*.sh' .ci/run 2>/dev/null)
c_files   = $(shell git ls-files 'bpf/*.c' 'bpf/include/*.bpf.h' 'bpf/*.bpf.h')

.DEFAULT_GOAL := help
.PHONY: help build generate test test-root e2e e2e-istiod lint fmt demo demo-up demo-down bench image clean packages test-packages FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

build: $(addprefix build/bin/,$(binaries)) build/cni/bridge ## static binaries to build/bin, the demo's CNI plugins to build/cni

build/bin/sluice-cni: FORCE
	$(static) -o $@ ./plugin
build/bin/ztunnel: FORCE
	$(static) -o $@ ./ztunnel
build/bin/sluice-installer: FORCE
	$(static) -o $@ ./installer
build/bin/demo: FORCE
	$(static) -o $@ ./internal/demo
build/bin/bench: FORCE
	$(static) -o $@ ./internal/bench
build/cni/bridge: go.mod
	@mkdir -p $(@D)
	$(static) -o $(@D)/ $(addprefix github.com/containernetworking/plugins/plugins/,$(cni))
	@touch $@
build/containerd/containerd: internal/tools/containerd/go.mod
	@mkdir -p $(@D)
	cd internal/tools/containerd && $(static) -o $(CURDIR)/$(@D)/ $(addprefix github.com/containerd/containerd/v2/cmd/,containerd containerd-shim-runc-v2)
	@touch $@
build/k8s/kustomize build/k8s/helm: internal/tools/manifests/go.mod
	cd internal/tools/manifests && $(static) -o $(CURDIR)/$@ $(if $(filter %/helm,$@),helm.sh/helm/v3/cmd/helm,sigs.k8s.io/kustomize/kustomize/v5)
	@touch $@

kube_ver := k8s.io/component-base/version
kube_tag := $(shell sed -n 's/^.*k8s.io\/kubernetes \(v[0-9.]*\)$$/\1/p' internal/tools/kube/go.mod)
# All of Kubernetes is one binary, of which a part is the name that it is called by.
kube_parts := $(addprefix build/k8s/,kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl)
$(kube_parts): build/k8s/hyperkube
	ln -sfn $(<F) $@
build/k8s/hyperkube: internal/tools/kube/go.mod internal/tools/kube/hyperkube/main.go
	cd internal/tools/kube && $(static) -o $(CURDIR)/$@ \
		-ldflags '-s -w -X $(kube_ver).gitVersion=$(kube_tag) -X $(kube_ver).gitMajor=1 -X $(kube_ver).gitMinor=$(word 2,$(subst ., ,$(kube_tag))) -X $(kube_ver).gitTreeState=clean' \
		./hyperkube
	@touch $@

build/k8s/coredns: internal/tools/dns/go.mod internal/tools/dns/main.go
	cd internal/tools/dns && $(static) -o $(CURDIR)/$@ .
	@touch $@

build/k8s/pilot-discovery: internal/tools/istio/go.mod
	cd internal/tools/istio && $(static) -tags disable_pgv -o $(CURDIR)/$@ istio.io/istio/pilot/cmd/pilot-discovery
	@touch $@
# The definitions of Istio's kinds, of the same release.
build/k8s/istio-crds.yaml: internal/tools/istio/go.mod
	@mkdir -p $(@D)
	cd internal/tools/istio && $(GO) mod download istio.io/istio
	cp --no-preserve=all "$$(cd internal/tools/istio && $(GO) list -m -f '{{.Dir}}' istio.io/istio)/manifests/charts/base/files/crd-all.gen.yaml" $@

generate: ## BPF objects and protobuf messages (needs clang and protoc)
	$(GO) generate ./...

packages: ## install the distribution's packages that the demo and most tests use, if any is missing
	@internal/tools/packages.sh run

test-packages: ## as packages, and the programs that are taken through the mesh: databases, haproxy, ssh and the like
	@internal/tools/packages.sh test

# What runs a second time, as if the kernel had no tcx.
datapath := ^Test(AgentKilled|AddWithout|DelWithout|AddFails|CheckNames|GCRemoves)

# Packages are compiled side by side and tested one after another: many tests have deadlines.
test: build build/containerd/containerd build/k8s/kustomize build/k8s/helm build/k8s/kube-apiserver build/k8s/kubectl test-packages ## all tests with the race detector; as root, or the tests that need it are skipped
	$(GO) build -race ./...
	SLUICE_BUILD=$(CURDIR)/build $(GO) test -race -timeout 15m -p 1 ./...
	SLUICE_BUILD=$(CURDIR)/build SLUICE_ATTACH_MODE=clsact $(GO) test -race -timeout 10m -p 1 ./bpf ./plugin
	SLUICE_BUILD=$(CURDIR)/build SLUICE_ATTACH_MODE=clsact $(GO) test -race -timeout 10m -run '$(datapath)' ./internal/e2e

test-root: export CI = true
test-root: test ## as test, but a test that cannot run fails

# The cluster is two nodes out of namespaces: internal/lab/cluster.
e2e: export CI = true
e2e: build build/containerd/containerd $(kube_parts) build/k8s/coredns test-packages ## a real Kubernetes cluster of two nodes with the mesh on it; as root; what is built for it is 4 GB of cache
	SLUICE_BUILD=$(CURDIR)/build SLUICE_E2E=1 $(GO) test -timeout 30m ./internal/e2e/cluster

# Not part of .ci/run, which has an hour: compiling istiod takes minutes more.
e2e-istiod: export CI = true
e2e-istiod: build build/containerd/containerd $(kube_parts) build/k8s/coredns build/k8s/pilot-discovery build/k8s/istio-crds.yaml test-packages ## the mesh with a real istiod as its control plane, on such a cluster; as root
	SLUICE_BUILD=$(CURDIR)/build SLUICE_E2E=1 SLUICE_E2E_ISTIOD=1 $(GO) test -timeout 30m -run '^TestIstiod' ./internal/e2e/cluster

lint: ## formats, vet, staticcheck, shellcheck, import and wording rules
	@internal/tools/packages.sh lint
	@out=$$(git ls-files '*.go' | xargs gofmt -l); [ -z "$$out" ] || { echo "gofmt -w these:"; echo "$$out"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(CLANG_FORMAT) --dry-run -Werror $(c_files)
	$(SHELLCHECK) $(scripts)
	$(GO) run ./internal/tools/rules

fmt: ## format Go and C
	git ls-files '*.go' | xargs gofmt -w
	$(CLANG_FORMAT) -i $(c_files)

demo: build build/bin/demo packages ## two nodes, real programs, ten proofs; then every trace removed
	build/bin/demo run -build build

demo-up: build build/bin/demo packages ## the same two nodes, left running to try
	build/bin/demo up -build build

demo-down: build/bin/demo ## remove what demo-up left and check that nothing stays
	build/bin/demo down

bench: build build/bin/bench ## measure against haproxy, nginx and no mesh, and the parts alone; writes docs/BENCHMARKS.md; about 25 minutes
	@internal/tools/packages.sh bench
	$(GO) test -run '^$$' -bench . -benchtime 1s ./bpf/... ./installer/flows ./ztunnel/... | tee build/gobench.txt
	build/bin/bench -build build -gobench build/gobench.txt -o docs/BENCHMARKS.md

image: $(addprefix build/image/linux-,$(ARCHS)) ## OCI archives of agent (with plugin) and ztunnel for all ARCHS, in build/image
	$(GO) run ./internal/tools/image -archs $(subst $(space),$(comma),$(ARCHS)) -registry $(REGISTRY) -tag $(TAG) \
		-version "$$(git describe --tags --always --dirty)" -revision "$$(git rev-parse HEAD)" -bin build/image -out build/image
build/image/linux-%: FORCE
	GOARCH=$* $(static) -o $@/sluice-cni ./plugin
	GOARCH=$* $(static) -o $@/sluice-installer ./installer
	GOARCH=$* $(static) -o $@/ztunnel ./ztunnel

clean: ## remove build/
	rm -rf build
