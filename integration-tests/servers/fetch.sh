#!/bin/sh
# Fetches the servers that pom.xml pins into .servers/ (kafka/, postgresql-14/ to postgresql-18/).
# Does nothing, in milliseconds, when they are there. Installs Java, Maven and xz where it can.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
servers=$(cd "$here/../.." && pwd)/.servers
stamp=$servers/stamp
wanted=$(cat "$here/pom.xml" "$here/fetch.sh" | cksum)

fresh() {
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]
}

if fresh; then exit 0; fi

has() {
    command -v "$1" >/dev/null 2>&1
}

# Installs what is missing with apt as root; else says in one line what to install.
install_missing() {
    packages=
    has java && java -version >/dev/null 2>&1 || packages="$packages default-jre-headless"
    has mvn || packages="$packages maven"
    has xz || packages="$packages xz-utils"
    has unzip || has python3 || has jar || packages="$packages unzip"
    if [ -z "$packages" ]; then return; fi
    if [ "$(id -u)" = 0 ] && has apt-get; then
        echo "servers: installing$packages"
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends $packages >/dev/null && return
    fi
    echo "error: the test servers need Java 17 or newer, Maven, xz and unzip; install these packages:$packages" >&2
    exit 1
}

platform() {
    case "$(uname -s)-$(uname -m)" in
        Linux-x86_64) echo linux-amd64 ;;
        Linux-aarch64) echo linux-arm64v8 ;;
        Darwin-x86_64) echo darwin-amd64 ;;
        Darwin-arm64) echo darwin-arm64v8 ;;
        *) echo "error: no PostgreSQL binaries are pinned for $(uname -s) on $(uname -m)" >&2; exit 1 ;;
    esac
}

# Prints the one .txz that the jar $1 holds.
archive_in() {
    if has unzip; then
        unzip -p "$1" '*.txz'
    elif has python3; then
        python3 -c 'import sys, zipfile
jar = zipfile.ZipFile(sys.argv[1])
sys.stdout.buffer.write(jar.read(next(n for n in jar.namelist() if n.endswith(".txz"))))' "$1"
    else
        scratch=$(mktemp -d)
        (cd "$scratch" && jar xf "$1" && cat ./*.txz)
        rm -rf "$scratch"
    fi
}

install_missing
mkdir -p "$servers"

# Two checkouts never share .servers, two shells of one checkout may: the second waits.
if has flock; then
    exec 9>"$servers/lock"
    flock 9
    if fresh; then exit 0; fi
fi

echo "servers: fetching Kafka and PostgreSQL 14 to 18 with Maven"
rm -rf "$servers"/kafka "$servers"/jars "$servers"/postgresql-* "$stamp"
mvn -B -q -Dstyle.color=never -f "$here/pom.xml" -Dservers="$servers" -Dpostgresql.platform="$(platform)" \
    dependency:copy-dependencies@kafka dependency:copy@postgresql

for jar in "$servers"/jars/postgresql-*.jar; do
    folder=$servers/$(basename "$jar" .jar)
    mkdir -p "$folder"
    archive_in "$jar" | xz -dc | tar -xf - -C "$folder" --no-same-owner
    [ -x "$folder/bin/postgres" ] || { echo "error: \`$jar\` holds no PostgreSQL" >&2; exit 1; }
done
rm -rf "$servers/jars"
# Servers run as another user when tests run as root.
chmod -R go+rX "$servers"
echo "$wanted" >"$stamp"
