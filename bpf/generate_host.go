// SPDX-License-Identifier: Apache-2.0

package bpf

//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types -type witness probe probe.bpf.c -- -O2 -mcpu=v3 -Wall -Werror -nostdlibinc -I include/vendor
//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types hostend hostend.bpf.c -- -O2 -mcpu=v3 -Wall -Werror -nostdlibinc -I include/vendor
//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types bind bind.bpf.c -- -O2 -mcpu=v3 -Wall -Werror -nostdlibinc -I include/vendor
//go:generate go tool bpf2go -tags linux -target bpfel -no-global-types -type flow_kind -type flow_path -type flow_event -type namespace_flag flows flows.bpf.c -- -O2 -mcpu=v3 -Wall -Werror -nostdlibinc -I include/vendor
