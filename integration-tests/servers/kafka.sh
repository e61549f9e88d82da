#!/bin/sh
# Starts and stops one throwaway Kafka broker from the jars in .servers/kafka.
#
#   kafka.sh start FOLDER     keeps everything in FOLDER, prints its host:port when it answers
#   kafka.sh stop FOLDER      ends that broker and removes FOLDER
set -eu

fail() {
    echo "error: $1" >&2
    exit 1
}

[ $# = 2 ] || fail "kafka.sh start FOLDER | kafka.sh stop FOLDER"
command=$1
folder=$2
jars=$(cd "$(dirname "$0")/../.." && pwd)/.servers/kafka

java_options="-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xshare:auto"

# Whether something listens on a port of this machine: /proc lists listeners by hexadecimal port, state 0A.
listens() {
    cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -qi "^ *[0-9]*: [0-9A-F]*:$(printf %04X "$1") [0-9A-F]*:[0-9A-F]* 0A"
}

# Below the ports that Linux gives to outgoing connections.
free_port() {
    while :; do
        port=$((20000 + $(od -An -N2 -tu2 /dev/urandom) % 12000))
        listens "$port" || break
    done
    echo "$port"
}

start() {
    [ -d "$jars" ] || fail "\`$jars\` is missing: run \`make servers\`"
    mkdir -p "$folder"
    port=$(free_port)
    controller=$(free_port)
    while [ "$controller" = "$port" ]; do controller=$(free_port); done
    cat >"$folder/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller
advertised.listeners=PLAINTEXT://127.0.0.1:$port
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=$folder/data
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
PROPERTIES
    # shellcheck disable=SC2086
    java -Xmx128m $java_options -cp "$jars/*" kafka.tools.StorageTool format -t b3V0Ym94ZC1kZW1vLTAwMQ \
        -c "$folder/server.properties" >"$folder/log" 2>&1 || fail "cannot format Kafka's folder: $(tail -n 3 "$folder/log")"
    # A session of its own: Ctrl-C ends who uses the broker first, and the broker after that.
    # shellcheck disable=SC2086
    setsid java -Xmx512m $java_options -cp "$jars/*" kafka.Kafka "$folder/server.properties" \
        >"$folder/log" 2>&1 </dev/null &
    echo $! >"$folder/pid"
    attempt=0
    until listens "$port"; do
        kill -0 "$(cat "$folder/pid")" 2>/dev/null || fail "Kafka ended: $(tail -n 3 "$folder/log")"
        attempt=$((attempt + 1))
        [ "$attempt" -lt 600 ] || fail "Kafka does not listen after 60 s: $(tail -n 3 "$folder/log")"
        sleep 0.1
    done
    echo "127.0.0.1:$port"
}

stop() {
    if [ -f "$folder/pid" ]; then
        kill -KILL "$(cat "$folder/pid")" 2>/dev/null || true
        # A killed process may still write for an instant.
        while kill -0 "$(cat "$folder/pid")" 2>/dev/null; do sleep 0.05; done
    fi
    rm -rf "$folder"
}

case $command in
    start) start ;;
    stop) stop ;;
    *) fail "unknown command \`$command\`; it is start or stop" ;;
esac
