#!/bin/sh
# Quotes the newest run of `make bench` between the marks: whole in docs/performance.md, what holds in README.md.
set -eu
cd "$(dirname "$0")/.."

run=
for file in target/bench/*.md; do run=$file; done
if [ ! -f "$run" ]; then
    echo "error: no run to quote: make bench writes one to target/bench" >&2
    exit 1
fi

# Puts standard input between the marks of a file.
quote() {
    grep -qx '<!-- measured -->' "$1"
    awk '
        FILENAME == "-" { text = text $0 "\n"; next }
        $0 == "<!-- measured -->" { printf "%s\n%s", $0, text; is_old = 1; next }
        $0 == "<!-- until here -->" { is_old = 0 }
        !is_old
    ' - "$1" >"$1.new"
    mv "$1.new" "$1"
}

quote docs/performance.md <"$run"
# Up to the second table: the head and what holds.
awk '/^### / { tables++ } tables < 2' "$run" | sed 's/^## .*//; s/^### /#### /' | quote README.md
echo "quoted $run"
