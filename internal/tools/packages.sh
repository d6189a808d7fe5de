#!/usr/bin/env bash
# packages.sh run|test|lint|bench|all: install the distribution packages whose commands are missing.
#
#   run   what the demo and most tests execute
#   test  run, and the programs that internal/e2e/programs takes through the mesh
#   lint  what "make lint" and "make generate" execute
#   bench what "make bench" executes
#   all   test and lint
#
# Nothing is installed that is already there, and no installed service is started. Where apt does not do it, it names
# what is missing and goes on: the step that needs it then says so itself.
set -euo pipefail

readonly run='ip:iproute2 tc:iproute2 sysctl:procps nft:nftables iptables:iptables curl:curl nginx:nginx-light
  iperf3:iperf3 python3:python3 gcc:gcc /usr/include/stdlib.h:libc6-dev
  containerd:containerd ctr:containerd runc:runc'
readonly programs='pg_createcluster:postgresql mariadbd:mariadb-server mariadb:mariadb-client redis-server:redis-server redis-cli:redis-tools
  etcd:etcd-server wrk:wrk haproxy:haproxy sshd:openssh-server ssh:openssh-client rsync:rsync aiosmtpd:python3-aiosmtpd busybox:busybox-static'
readonly lint='clang:clang clang-format:clang-format llvm-strip:llvm protoc:protobuf-compiler
  /usr/include/google/protobuf/any.proto:libprotobuf-dev shellcheck:shellcheck git:git'

readonly bench='haproxy:haproxy bpftool:bpftool iperf3:iperf3 nginx:nginx-light /usr/lib/nginx/modules/ngx_stream_module.so:libnginx-mod-stream'

case ${1-} in
run) wanted=$run ;;
test) wanted="$run $programs" ;;
lint) wanted=$lint ;;
bench) wanted=$bench ;;
all) wanted="$run $programs $lint" ;;
*)
	sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
	exit 2
	;;
esac

present() {
	case $1 in
	/*) [[ -e $1 ]] ;;
	*) PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null ;;
	esac
}

missing=()
for pair in $wanted; do
	present "${pair%%:*}" || missing+=("${pair#*:}")
done
((${#missing[@]})) || exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)

if ! command -v apt-get >/dev/null || ((EUID)); then
	echo "missing packages: ${missing[*]} (to have them installed: as root, on a system with apt)" >&2
	exit 0
fi

# A policy of 101 keeps the packages' services from being started; an existing policy is left alone.
readonly policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod +x "$policy"
	trap 'rm -f "$policy"' EXIT
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >/dev/null; }
install 2>/dev/null || { apt-get update -qq </dev/null && install; } ||
	echo "not installed: ${missing[*]}" >&2
