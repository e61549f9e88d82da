#!/bin/sh
# Runs the stages of `make test` one after the other, prints the seconds of each, and ends at the first that fails.
set -u

cd "$(dirname "$0")/.." || exit 1
began=$(date +%s)
summary=
fetch_log=$(mktemp)
trap 'rm -f "$fetch_log"' EXIT
# Ctrl-C ends the running stage, which then counts as failed; this shell lives on to see the servers end.
trap 'true' INT TERM

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
        printf '\n%sfailed: %s, after %d s\n' "$summary" "$name" $(($(date +%s) - began))
        exit "$status"
    fi
}

# Begun beside the first stage: it needs the network, the compiler the processors.
servers() {
    wait "$fetching"
    fetched=$?
    cat "$fetch_log"
    return "$fetched"
}

# The servers of the tests live in a folder of this run, which is empty when the last of them has ended.
integration() {
    folder=$(mktemp -d "${TMPDIR:-/tmp}/outboxd-run-XXXXXX")
    chmod 755 "$folder"
    # shellcheck disable=SC2086
    TMPDIR=$folder cargo test --locked --test integration -- --test-threads="${TEST_THREADS:-5}" ${TESTS:-}
    outcome=$?
    attempt=0
    until rmdir "$folder" 2>/dev/null; do
        attempt=$((attempt + 1))
        if [ "$attempt" -gt 1200 ]; then
            echo "error: the tests left something in $folder" >&2
            return 1
        fi
        sleep 0.1
    done
    return "$outcome"
}

integration-tests/servers/fetch.sh >"$fetch_log" 2>&1 &
fetching=$!

stage check make --no-print-directory check
stage unit cargo test --locked --quiet --lib --bins
stage servers servers
stage integration integration
stage image integration-tests/image.sh target/debug/outboxd
printf '\n%s%-12s %4d s\n' "$summary" total $(($(date +%s) - began))
