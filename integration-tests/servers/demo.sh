#!/bin/sh
# Runs `outboxd demo` on a bare machine: fetches PostgreSQL where none is installed, and with KAFKA=1 starts a real
# Kafka and always stops it, on Ctrl-C too. Arguments go to `outboxd demo`.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
scratch=$(mktemp -d "${TMPDIR:-/tmp}/outboxd-demo-XXXXXX")
chmod 755 "$scratch"

clean() {
    trap '' INT TERM
    "$here/kafka.sh" stop "$scratch/kafka"
    rm -rf "$scratch"
}
trap clean EXIT
# The demo gets the terminal's Ctrl-C itself and cleans up; this shell only has to outlive it.
trap 'interrupted=yes' INT TERM

interrupted=no
stop_if_interrupted() {
    if [ "$interrupted" = yes ]; then exit 130; fi
}

has_postgres() {
    if command -v postgres >/dev/null && command -v initdb >/dev/null; then return 0; fi
    for program in /usr/lib/postgresql/*/bin/initdb; do
        if [ -x "$program" ]; then return 0; fi
    done
    return 1
}

if ! has_postgres; then
    "$here/fetch.sh"
    stop_if_interrupted
    # Root gives the server to another user, who may not be able to look into this checkout.
    cp -Rp "$root/.servers/postgresql-15" "$scratch/postgresql"
    set -- --postgres-bin "$scratch/postgresql/bin" "$@"
fi

if [ "${KAFKA:-0}" = 1 ]; then
    "$here/fetch.sh"
    stop_if_interrupted
    echo "demo: starting Kafka" >&2
    brokers=$("$here/kafka.sh" start "$scratch/kafka")
    stop_if_interrupted
    set -- --brokers "$brokers" "$@"
fi

status=0
"$root/target/release/outboxd" demo "$@" || status=$?
exit "$status"
