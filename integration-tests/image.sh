#!/bin/sh
# Tries a binary where it has only what the image holds: a root tree with the libraries that `ldd` names and
# certificates, read-only, as a user without rights.
# Usage: integration-tests/image.sh path/to/outboxd
set -eu

binary=${1:?usage: integration-tests/image.sh path/to/outboxd}
# The user of the Dockerfile.
user=65532

if [ "$(uname -s)" != Linux ]; then
    echo "image: skipped, the image is for Linux"
    exit 0
fi

tree=$(mktemp -d "${TMPDIR:-/tmp}/outboxd-image-XXXXXX")
output=$(mktemp "${TMPDIR:-/tmp}/outboxd-image-output-XXXXXX")
relay=
finish() {
    if [ -n "$relay" ]; then kill -9 "$relay" 2>/dev/null || true; fi
    chmod -R u+w "$tree"
    rm -rf "$tree" "$output"
}
trap finish EXIT
trap 'exit 130' INT TERM

fail() {
    echo "image: $1" >&2
    sed 's/^/    /' "$output" >&2
    exit 1
}

# Runs outboxd in the tree: root changes the user, anyone else enters a user namespace.
inside() {
    if [ "$(id -u)" = 0 ]; then
        set -- chroot --userspec="$user:$user" --groups="$user" "$tree" "$@"
    else
        set -- unshare --map-user="$user" --map-group="$user" --root="$tree" --wd=/ "$@"
    fi
    exec env -i PATH="$PATH" SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt OUTBOXD_ADMIN__LISTEN=127.0.0.1:0 "$@"
}

# Nothing but what distroless/cc brings: a library more would be missing there.
libraries() {
    ldd "$binary" >"$output"
    while read -r name _ path _; do
        case "$name" in
            linux-vdso.so.*) continue ;;
            libc.so.6 | libm.so.6 | libgcc_s.so.1 | libdl.so.2 | libpthread.so.0 | librt.so.1) ;;
            /lib*/ld-linux*.so.*) path=$name ;;
            *) fail "the binary needs $name, which the image does not hold" ;;
        esac
        mkdir -p "$tree$(dirname "$path")"
        cp -L "$path" "$tree$path"
    done <"$output"
}

fill() {
    libraries
    mkdir -p "$tree/usr/local/bin" "$tree/etc/ssl/certs" "$tree/etc/outboxd"
    cp "$binary" "$tree/usr/local/bin/outboxd"
    # What a container engine brings.
    echo '127.0.0.1 localhost' >"$tree/etc/hosts"
    if [ -f /etc/ssl/certs/ca-certificates.crt ]; then
        cp -L /etc/ssl/certs/ca-certificates.crt "$tree/etc/ssl/certs/"
    fi
    # Nobody listens on port 1: what outboxd says of that, it says in its own words.
    cat >"$tree/etc/outboxd/outboxd.toml" <<'CONFIG'
[source]
url = "postgres://relay@localhost:1/orders"
[kafka]
brokers = ["localhost:2"]
[kafka.properties]
"security.protocol" = "SSL"
CONFIG
    chmod -R a=rX "$tree"
}

outboxd() {
    (inside /usr/local/bin/outboxd "$@") >"$output" 2>&1
}

says() {
    grep -q -- "$1" "$output" || fail "$2"
}

fill
outboxd --version || fail "--version fails"
says '^outboxd [0-9]' "--version does not say the version"
outboxd --help || fail "--help fails"
says 'Usage: outboxd' "--help does not teach"

status=0
outboxd check --config /etc/outboxd/outboxd.toml || status=$?
[ "$status" = 1 ] || fail "check of two servers that are away exits with $status, not 1"
says 'localhost:1' "check does not name the servers that are away"

# What the image runs when it is told nothing; `exec` in it makes $! the relay itself.
(inside /usr/local/bin/outboxd run --config /etc/outboxd/outboxd.toml) >"$output" 2>&1 &
relay=$!
attempt=0
until grep -q 'trying again' "$output"; do
    kill -0 "$relay" 2>/dev/null || fail "run ended although it should wait for the servers"
    attempt=$((attempt + 1))
    [ "$attempt" -lt 300 ] || fail "run does not say within 30 s what it waits for"
    sleep 0.1
done
kill -TERM "$relay"
status=0
wait "$relay" || status=$?
relay=
[ "$status" = 0 ] || fail "run exits with $status after SIGTERM, not 0"
says 'admin server listens' "run does not open its admin port"

echo "image: outboxd runs in an empty tree, read-only, as user $user, with $(ldd "$binary" | grep -c '=> /') libraries"
