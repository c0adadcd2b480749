#!/usr/bin/env bash
# Prints how many instructions of user space one warm exchange of 1 KB takes: the difference of two runs of different length, counted by
# valgrind, which counts the same each time. What the kernel does is not in it.
#
#     bash benches/instructions.sh
set -euo pipefail
cd "$(dirname "$0")/.."
command -v valgrind >/dev/null || { echo "needs valgrind" >&2; exit 1; }

built=$(cargo bench --bench instructions --no-run 2>&1)
program=$(sed -nE 's/.*\((.*instructions-[0-9a-f]+)\)$/\1/p' <<<"$built")
[ -x "$program" ] || { echo "$built" >&2; exit 1; }
output=$(mktemp -d)
exec 3< <(exec "$program" serve)
receiver=$!
trap 'kill "$receiver" 2>/dev/null || true; rm -rf "$output"' EXIT
read -r address <&3

count() {
    valgrind --tool=callgrind --callgrind-out-file="$output/$1.$2" "$program" "$1" "$address" "$2" 2>&1 |
        sed -nE 's/.*Collected : ([0-9]+)$/\1/p'
}
few=1000 many=5000
for kind in exchange send; do
    echo "$kind: $((($(count $kind $many) - $(count $kind $few)) / (many - few))) instructions"
done
