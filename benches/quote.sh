#!/bin/sh
# Quotes a run of `make bench` between the marks: whole in docs/performance.md, six rows in README.md, two of them drawn in
# docs/throughput.svg.
#
# quote.sh [RUN [OTHER...]]: RUN is the newest in target/bench where none is named. Of the OTHERs come the lines and tables
# that RUN did not measure, with their date. quote.sh --again: the rows and the chart anew, from what docs/performance.md holds.
set -eu
cd "$(dirname "$0")/.."

again=
if [ "${1:-}" = --again ]; then
    again=yes
    set -- docs/performance.md
fi

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

# The medians of the run that docs/performance.md holds: `section|row|column|value`, one a line.
medians() {
    awk -F ' *[|] *' '
        $0 == "<!-- measured -->" { is_quoted = 1 }
        /^### / { section = $0; split("", columns); next }
        !is_quoted || !/^[|]/ || /^[|]---/ { next }
        !(1 in columns) { for (field = 2; field < NF; field++) columns[field - 1] = $field; next }
        { for (field = 3; field < NF; field++) { value = $field; sub(/ .*/, "", value); print section "|" $2 "|" columns[field - 1] "|" value } }
    ' docs/performance.md
}

# What a user feels: the rows of README.md with `what=rows`, the chart with `what=chart`.
felt() {
    medians | awk -F '|' -v what="$1" -v run="$(grep -m 1 ', `make bench.*, [0-9]* min, ' docs/performance.md)" '
        function of(section, row, column) {
            return (section, row, column) in known ? known[section, row, column] : "not measured"
        }
        function drain(row, column) { return of("drain", row, column) }
        function latency(row) {
            row = row " at 2000 rows/s"
            return of("latency", row, "p50 ms") " / " of("latency", row, "p99 ms") " ms"
        }
        function idle(row) {
            return of("idle", row, "CPU % of a core") " % of a core, " of("idle", row, "resident MB") " MB"
        }
        function thousands(number) {
            number = int(number)
            return number < 1000 ? number : int(number / 1000) "," sprintf("%03d", number % 1000)
        }
        function rows(row) { return thousands(drain(row, "rows/s")) }
        function bar(label, row, colour,    value, width, y) {
            value = drain(row, "rows/s")
            if (value == "not measured") return
            width = 420 * value / drain("polling, TCP", "rows/s")
            y = 44 + 34 * bars++
            printf "  <text class=\"t\" x=\"232\" y=\"%d\" text-anchor=\"end\">%s</text>\n", y + 15, label
            printf "  <rect x=\"240\" y=\"%d\" width=\"%.0f\" height=\"22\" fill=\"%s\"/>\n", y, width, colour
            printf "  <text class=\"t\" x=\"%.0f\" y=\"%d\">%s</text>\n", 246 + width, y + 15, thousands(value)
        }
        $1 ~ /^### Drain of [0-9]+ rows, one-row transactions of 250 B$/ { known["drain", $2, $3] = $4 }
        $1 ~ /^### Latency of one-row transactions of 250 B, by one monotonic clock[^;]*; [*]due/ { known["latency", $2, $3] = $4 }
        $1 ~ /^### Idle for [0-9]+ s, and started$/ { known["idle", $2, $3] = $4 }
        END {
            stream = "replication, TCP"; poll = "polling, TCP"; debezium = "Debezium Server, TCP"; reader = "pg_recvlogical, TCP"
            if (what == "chart") {
                print "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"740\" height=\"196\" viewBox=\"0 0 740 196\" role=\"img\">"
                print "  <title>Rows per second, draining one backlog on one machine</title>"
                print "  <style>.t { font: 13px sans-serif; fill: #24292f } .h { font: bold 14px sans-serif; fill: #24292f }</style>"
                print "  <rect width=\"740\" height=\"196\" fill=\"#ffffff\"/>"
                print "  <text class=\"h\" x=\"16\" y=\"26\">Rows per second: one backlog, one machine, one-row transactions of 250 B</text>"
                bar("outboxd, polling", poll, "#1a7f64")
                bar("outboxd, stream", stream, "#1a7f64")
                bar("Debezium Server", debezium, "#8c959f")
                bar("pg_recvlogical, publishes nothing", reader, "#c9d1d9")
                print "</svg>"
                exit
            }
            print "\n" run
            print "Medians of one run, over TCP, one-row transactions of 250 B; Kafka, PostgreSQL and the relay share the processors."
            print "`pg_recvlogical` only reads: it writes to `/dev/null` and publishes nothing.\n"
            print "![Rows per second](docs/throughput.svg)\n"
            print "| | outboxd | Debezium Server | `pg_recvlogical` |"
            print "|---|---:|---:|---:|"
            print "| throughput, stream | " rows(stream) " rows/s | " rows(debezium) " rows/s | " rows(reader) " rows/s |"
            print "| throughput, polling | " rows(poll) " rows/s | | |"
            print "| latency at 2,000 rows/s, p50 / p99 | stream " latency(stream) "<br>polling " latency(poll) " | " latency(debezium) " | |"
            print "| CPU a row, stream | " drain(stream, "CPU µs/row") " µs | " drain(debezium, "CPU µs/row") " µs | " drain(reader, "CPU µs/row") " µs |"
            print "| memory at full speed, stream | " drain(stream, "peak MB") " MB | " drain(debezium, "peak MB") " MB | " drain(reader, "peak MB") " MB |"
            print "| idle | stream " idle("replication") "<br>polling " idle("polling") " | | |\n"
        }
    '
}

if [ -z "$again" ]; then filled "$@" | quote docs/performance.md; fi
felt rows | quote README.md
felt chart >docs/throughput.svg
echo "quoted $*"
