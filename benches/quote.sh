#!/bin/sh
# Quotes a run of `make bench` between the marks: whole in docs/performance.md, what holds in README.md.
#
# quote.sh [RUN [OTHER...]]: RUN is the newest in target/bench where none is named. Of the OTHERs come the lines and tables
# that RUN did not measure, with their date.
set -eu
cd "$(dirname "$0")/.."

if [ $# -eq 0 ]; then
    for file in target/bench/*.md; do set -- "$file"; done
fi
for file in "$@"; do
    if [ ! -f "$file" ]; then
        echo "error: no run \`$file\` to quote: make bench writes them to target/bench" >&2
        exit 1
    fi
done

# The first run, with what only the others measured.
filled() {
    awk '
        FNR == 1 { claim = 0; files++ }
        FNR == 3 && files > 1 { heads = heads "\n- " $0 }
        FNR == 3 { date = substr($0, 1, index($0, ",") - 1) }
        /^### / { is_claims = $0 == "### What holds"; is_new = !($0 in known); known[$0]; if (files > 1) $0 = $0 "; " date }
        { is_claim = is_claims && /^\| [^|]/; claim += is_claim }
        files == 1 { line[FNR] = $0; lines = FNR; if (is_claim) at[claim] = FNR; next }
        is_claim && !/not measured \|$/ && line[at[claim]] ~ /not measured \|$/ {
            split($0, said, " [|] "); split(line[at[claim]], asked, " [|] ")
            if (said[1] == asked[1]) line[at[claim]] = substr($0, 1, length($0) - 2) ", " date " |"
        }
        is_new { line[++lines] = $0 }
        END {
            for (number = 1; number <= lines; number++) {
                if (heads && line[number] ~ /^What was not measured here/)
                    line[number] = "Lines and tables with a date are of the run of that date:\n" heads
                print line[number]
            }
        }
    ' "$@"
}

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

filled "$@" | quote docs/performance.md
# Up to the second table: the head and what holds.
filled "$@" | awk '/^### / { tables++ } tables < 2' | sed 's/^## .*//; s/^### /#### /' | quote README.md
echo "quoted $*"
