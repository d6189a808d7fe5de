// SPDX-License-Identifier: Apache-2.0

// Command rules checks what compilers and linters cannot know of this repository: which package may import which, and
// a few wordings that stand for lessons learnt. It prints one line per offence, naming the right way, and exits 1.
//
// Usage: go run ./internal/tools/rules (from the repository's root)
package main

import (
	"fmt"
	"os"
)

func main() {
	os.Exit(run("."))
}

func run(root string) int {
	packages, err := list(root)
	if err != nil {
		fmt.Fprintln(os.Stderr, "rules:", err)
		return 2
	}
	offences := checkImports(packages)
	wordings, err := checkWordings(root)
	if err != nil {
		fmt.Fprintln(os.Stderr, "rules:", err)
		return 2
	}
	offences = append(offences, wordings...)
	for _, o := range offences {
		fmt.Println(o)
	}
	if len(offences) > 0 {
		return 1
	}
	return 0
}
