#!/usr/bin/env bash
# protoc.sh FILE.proto: generate FILE.pb.go beside it with the protoc-gen-go pinned in go.mod.
#
# protoc itself comes from the distribution (Debian: protobuf-compiler, libprotobuf-dev); the header line that names
# its version is dropped, so that the output depends on go.mod alone.
set -euo pipefail

folder=$(pwd)
root=$(git rev-parse --show-toplevel)
readonly folder root
readonly file=${folder#"$root"/}/$1

plugin=$(mktemp)
readonly plugin
trap 'rm -f "$plugin"' EXIT
printf '#!/bin/sh\nexec go tool protoc-gen-go\n' >"$plugin"
chmod +x "$plugin"

cd "$root"
protoc --proto_path="$root" --plugin=protoc-gen-go="$plugin" --go_out="$root" --go_opt=paths=source_relative "$file"
sed -i '/^\/\/ \tprotoc  *v/d' "${file%.proto}.pb.go"
