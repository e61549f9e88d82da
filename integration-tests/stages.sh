#!/bin/sh
# Runs the stages of `make test` one after the other, prints the seconds of each, and ends at the first that fails.
set -u

cd "$(dirname "$0")/../.." || exit 1
began=$(date +%s)
summary=

stage() {
    name=$1
    shift
    printf '\n== %s\n' "$name"
    from=$(date +%s)
    "$@"
    status=$?
    line=$(printf '%-12s %4d s' "$name" $(($(date +%s) - from)))
    summary="$summary$line
"
    if [ "$status" != 0 ]; then
        printf '\n%s\nfailed: %s, after %d s\n' "$summary" "$name" $(($(date +%s) - began))
        exit "$status"
    fi
}

# Servers of the tests live in a folder of this run. It is empty when the last of them has ended.
integration() {
    folder=$(mktemp -d "${TMPDIR:-/tmp}/outboxd-run-XXXXXX")
    chmod 755 "$folder"
    TMPDIR=$folder cargo test --quiet --test integration -- --test-threads="${TEST_THREADS:-3}" ${TESTS:-}
    outcome=$?
    attempt=0
    until rmdir "$folder" 2>/dev/null || [ "$attempt" -ge 200 ]; do
        attempt=$((attempt + 1))
        sleep 0.1
    done
    if [ -d "$folder" ]; then
        echo "error: the tests left something in $folder" >&2
        [ "$outcome" != 0 ] || outcome=1
    fi
    return "$outcome"
}

# Fetching needs the network and checking the processor: they can share the time.
fetch_log=$(mktemp)
integration-tests/servers/fetch.sh >"$fetch_log" 2>&1 &
fetching=$!

servers() {
    wait "$fetching"
    fetched=$?
    cat "$fetch_log"
    rm -f "$fetch_log"
    return "$fetched"
}

stage check make --no-print-directory check
stage unit cargo test --quiet --lib --bins
stage servers servers
stage integration integration
printf '\n%s%-12s %4d s\n' "$summary" total $(($(date +%s) - began))
