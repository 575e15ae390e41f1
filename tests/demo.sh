#!/usr/bin/env bash
# What `./dev demo` shows, once everything is built: tests/demo.sh DIR [--keep | --once]
# DIR is emptied first. Without an option it stays up when standard input is a terminal.
set -euo pipefail

readonly DIR=$1
readonly VIRTBUS=target/debug/virtbus
readonly READY="$DIR/ready.json" LOG="$DIR.log"
readonly START_LIMIT_S=60 JOB_LIMIT_S=120
# Enough that converting it takes a while.
readonly DATA_MIB=${VIRTBUS_DEMO_MIB:-900}

keep=no
if [[ -t 0 ]]; then keep=yes; fi
case ${2:-} in
    --keep) keep=yes ;;
    --once) keep=no ;;
    '') ;;
    *) echo "demo: unknown option $2 (there are --keep and --once)" >&2; exit 64 ;;
esac

step=0
title() { step=$((step + 1)); printf '\n%d. %s\n' "$step" "$*"; }
line() { printf '   %s\n' "$*"; }
fail() { printf '\ndemo: %s\n' "$*" >&2; exit 1; }

# ---- start and stop ------------------------------------------------------------------------

up=

stop() {
    local code=$?
    trap - EXIT INT TERM
    if [[ -n $up ]]; then
        kill -TERM "$up" 2>/dev/null || true
        wait "$up" || true
    fi
    if ((code == 0)); then
        printf '\nAll stopped. The disks are in %s, the log is %s\n' "${DIR#"$PWD"/}" "${LOG#"$PWD"/}"
    else
        printf '\nThe last lines of %s:\n' "$LOG" >&2
        tail -n 20 "$LOG" >&2 || true
    fi
    exit "$code"
}

field() { "$VIRTBUS_PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$READY" "$1"; }

start() {
    "$VIRTBUS" up --dir "$DIR" --ready-file "$READY" >"$LOG" 2>&1 </dev/null 9>&- &
    up=$!
    local deadline=$((SECONDS + START_LIMIT_S))
    until [[ -s $READY ]]; do
        kill -0 "$up" 2>/dev/null || fail 'virtbus up ended before it was ready'
        ((SECONDS < deadline)) || fail "virtbus up was not ready after $START_LIMIT_S s"
        sleep 0.1
    done
}

# ---- jobs ----------------------------------------------------------------------------------

# A bare request of any NATS client: the stream answers that it has the job.
publish() {
    local subject=$1 job=$2
    if command -v nats >/dev/null; then
        line "\$ nats req $subject '$job'"
        nats --server "$nats" req --raw "$subject" "$job" 2>/dev/null | sed '/^$/d; s/^/   /'
    else
        line "from Python: await nc.request('$subject', b'$job')"
        "$VIRTBUS_PYTHON" - "$nats" "$subject" "$job" <<'PYTHON' | sed 's/^/   /'
import asyncio, sys
import nats

async def main(url, subject, job):
    client = await nats.connect(url)
    answer = await client.request(subject, job.encode(), timeout=5)
    print(answer.data.decode())
    await client.close()

asyncio.run(main(*sys.argv[1:]))
PYTHON
    fi
}

# Waits until a job that was only published is over, and says how it ended.
outcome() {
    local job=$1 deadline=$((SECONDS + JOB_LIMIT_S)) state=
    while ((SECONDS < deadline)); do
        state=$("$VIRTBUS" show "$job" --json --server "$nats" 2>/dev/null |
            "$VIRTBUS_PYTHON" -c 'import json, sys; print(json.load(sys.stdin)["state"])' 2>/dev/null) || state=
        case $state in
            succeeded) line "$job: $state"; return ;;
            failed | cancelled) fail "$job ended $state" ;;
        esac
        sleep 0.1
    done
    fail "$job was not over after $JOB_LIMIT_S s"
}

# A job by the command line, with its progress as it runs.
submit() {
    line "\$ virtbus submit $* --watch"
    "$VIRTBUS" submit "$@" --watch --server "$nats"
}

# What the catalogue says of the domain.
domain() {
    "$VIRTBUS_PYTHON" - "$nats" "$@" <<'PYTHON' | sed 's/^/   /'
import asyncio, json, sys
import nats

async def main(url, *fields):
    client = await nats.connect(url)
    bucket = await client.jetstream().key_value("domains")
    record = json.loads((await bucket.get("demo")).value)
    print("domain demo:", json.dumps({field: record[field] for field in fields}))
    await client.close()

asyncio.run(main(*sys.argv[1:]))
PYTHON
}

# ---- the demo ------------------------------------------------------------------------------

# One demo at a time: a second one would take the first one's folder away.
mkdir -p "$(dirname "$DIR")"
exec 9>"$DIR.lock"
flock -n 9 || fail 'another demo is running in this checkout'
trap stop EXIT
trap 'exit 0' INT TERM
rm -rf "$DIR"
mkdir -p "$DIR"

printf '\nvirtbus: jobs for virtualization platforms, over NATS\n'

title 'Start nats-server and the services: core, storage, hypervisor, feedback'
began=${EPOCHREALTIME/[.,]/}
start
took=$(((${EPOCHREALTIME/[.,]/} - began) / 100000))
nats=$(field nats) http=$(field http) token=$(field token)
line "ready after $((took / 10)).$((took % 10)) s, NATS at $nats"

title 'Create a disk of 1 GiB with nothing but a plain publish'
publish storage.default.high \
    '{"id":"demo-create","task":"create_disk","params":{"disk":"web1","size":"1GiB","format":"raw"}}'
outcome demo-create

title "Put $DATA_MIB MiB of data on it, as a guest would, so that there is something to convert"
dd if=/dev/urandom of="$(field pool_root)/disks/web1.raw" bs=1M count="$DATA_MIB" conv=notrunc status=none
line "written to disks/web1.raw in the pool's folder"

title 'Make it larger'
submit resize -p disk=web1 -p size=2GiB

title 'Convert it to qcow2, at low priority'
submit convert -p disk=web1 -p to=web2 -p format=qcow2

title 'Delete the first one (into the trash, for a week)'
submit delete_disk -p disk=web1

title 'Start a domain from the second one: a real QEMU under a libvirt daemon of its own'
submit start_domain -p domain=demo -p 'template={"memory":"64MiB","vcpus":1,"disks":["web2"]}'
domain state graphics hypervisor

title 'Its disk is in use now: whoever wants to change it is refused'
line '$ virtbus submit resize -p disk=web2 -p size=3GiB --wait'
"$VIRTBUS" submit resize -p disk=web2 -p size=3GiB --wait --server "$nats" 2>&1 | sed 's/^/   /' || true

title 'Keep what it is, memory and all; let the power fail; put it back'
submit create_snapshot -p domain=demo -p snapshot=before
submit stop_domain -p domain=demo -p mode=destroy
domain state desired snapshots
submit revert_snapshot -p domain=demo -p snapshot=before
domain state

title 'Stop it'
submit stop_domain -p domain=demo -p mode=shutdown_then_destroy -p deadline_s=1
domain state

title 'The jobs so far'
"$VIRTBUS" list --server "$nats" | sed 's/^/   /'

title 'Look around'
line "console    $http/"
line "token      $token"
line "NATS       export NATS_URL=$nats"
line "one job    nats kv get jobs demo-create --raw"
line "its life   nats kv watch jobs demo-create"
line "all events nats sub 'events.jobs.>'"
line "queues     nats consumer report STORAGE"
if ! command -v nats >/dev/null; then
    line "(the nats CLI isn't on the PATH: https://github.com/nats-io/natscli)"
fi

if [[ $keep == yes ]]; then
    printf '\nEverything stays up until Ctrl-C.\n'
    wait "$up" || true
    fail 'virtbus up ended by itself'
fi
