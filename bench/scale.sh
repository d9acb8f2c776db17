#!/usr/bin/env bash
# Many keys, and many grants on one key: what a mount, a listing and a decision cost then, beside a store with few.
#
#   bench/scale.sh                       10,000 keys and 50,000 grants on one of them: some minutes
#   bench/scale.sh KEYS GRANTS           other numbers
#
# Prints a line a measurement: what, how many, seconds of wall clock, and of CPU where the daemon's alone counts. Needs
# root, jq and python3. Works in a mount namespace of its own. The store lies in WORK_DIR (/dev/shm), since what flushes
# cost a disk is not the question; KMSFS is the program (target/release/kmsfs).
set -euo pipefail

export LC_ALL=C.UTF-8
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export KMSFS=${KMSFS:-$here/../target/release/kmsfs}

if [[ ${KMSFS_SCALE_NAMESPACE-} != 1 ]]; then
    [[ -x $KMSFS ]] || { echo "scale: no $KMSFS: cargo build --release" >&2; exit 1; }
    KMSFS_SCALE_NAMESPACE=1 exec unshare --mount --propagation private -- "$0" "$@"
fi

KEYS=${1:-10000} GRANTS=${2:-50000}
WORK=$(mktemp -d "${WORK_DIR:-/dev/shm}/kmsfs-scale.XXXXXX")
export KMSFS_ANCHOR=$WORK/anchor
MNT=$WORK/mnt
chmod 755 "$WORK"
mkdir "$MNT" "$KMSFS_ANCHOR"
(umask 077 && head -c 64 /dev/urandom >"$WORK/key")

finish() {
    cd /
    mountpoint -q "$MNT" && "$KMSFS" umount "$MNT" >/dev/null
    rm -rf "$WORK"
}
trap finish EXIT

serve() { "$KMSFS" mount "$1" "$MNT" --key-file "$WORK/key" --log-file "$WORK/log" >/dev/null; }
leave() { "$KMSFS" umount "$MNT" >/dev/null; }

# User and system time of the daemon so far, in seconds.
daemon_cpu() { awk -v hz="$(getconf CLK_TCK)" '{ print ($14 + $15) / hz }' "/proc/$(awk '{ print $1; exit }' "$1/lock")/stat"; }

say() { printf '%-58s %10s %10s\n' "$@"; }

timed() { # WHAT STORE COMMAND...
    local what=$1 store=$2 start cpu
    shift 2
    start=$(date +%s.%N) cpu=$(daemon_cpu "$store")
    "$@" >/dev/null
    say "$what" "$(awk "BEGIN { printf \"%.3f s\", $(date +%s.%N) - $start }")" \
        "$(awk "BEGIN { printf \"%.2f cpu\", $(daemon_cpu "$store") - $cpu }")"
}

mounted() { # WHAT STORE
    local start
    start=$(date +%s.%N)
    serve "$2"
    say "$1" "$(awk "BEGIN { printf \"%.3f s\", $(date +%s.%N) - $start }")" "$(daemon_cpu "$2") cpu"
}

# Lines for a ctl file, a write each.
lines() { python3 -c 'import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY)
for line in sys.stdin: os.write(fd, line.encode())' "$1"; }

keys() { seq -f "create-key k%06g user=uid:4001" "$KEYS" | lines "$MNT/.kms/ctl"; }

# In documents of 120; a third is bound to an item, a third ends tomorrow.
grants() {
    python3 - "$((GRANTS - 2))" "$MNT/.kms/keys/many/grants" <<'PYTHON'
import json, os, sys
def grant(n):
    made = {"Grantee": f"uid:{100000 + n}", "Operations": ["Decrypt"]}
    if n % 3 == 1:
        made["Constraints"] = {"EncryptionContextSubset": {"kmsfs:table": "many", "kmsfs:item": f"{n}"}}
    if n % 3 == 2:
        made["Expires"] = "1d"
    return made
total, each = int(sys.argv[1]), 120
for start in range(0, total, each):
    document = {"Grants": [grant(n) for n in range(start, min(total, start + each))]}
    with open(f"{sys.argv[2]}/batch.json", "w") as file:
        file.write(json.dumps(document, separators=(",", ":")))
PYTHON
}

# Opens an item a number of times, as the user.
opens() { # UID ITEM TIMES
    setpriv --reuid="$1" --regid="$1" --clear-groups python3 -c 'import os, sys
for _ in range(int(sys.argv[2])):
    os.close(os.open(sys.argv[1], os.O_RDONLY))' "$2" "$3"
}

fill() { # STORE: two tables, an item in each
    "$KMSFS" --at "$MNT" table create many --user uid:4001 --mode 777
    "$KMSFS" --at "$MNT" table create few --user uid:4001 --mode 777
    local table
    for table in many few; do
        setpriv --reuid=4001 --regid=4001 --clear-groups sh -c "umask 0; echo x >$MNT/$table/7"
    done
} >/dev/null

"$KMSFS" init "$WORK/small" --key-file "$WORK/key" >/dev/null
"$KMSFS" init "$WORK/large" --key-file "$WORK/key" >/dev/null

serve "$WORK/small"
fill
leave
mounted "mount, 4 keys" "$WORK/small"
timed "20,000 opens, no grants" "$WORK/small" opens 4001 "$MNT/many/7" 20000
leave

serve "$WORK/large"
fill
timed "$KEYS keys made, a commit each" "$WORK/large" keys
timed "$GRANTS grants made, 120 a commit" "$WORK/large" grants
timed "one grant more" "$WORK/large" "$KMSFS" --at "$MNT" grant create many uid:4002 --operations Decrypt
timed "one for an item" "$WORK/large" "$KMSFS" --at "$MNT" grant create many uid:4003 --operations Decrypt --table many --item 7
leave
mounted "mount, $KEYS keys and $GRANTS grants" "$WORK/large"
grep VmRSS "/proc/$(awk '{ print $1; exit }' "$WORK/large/lock")/status" | tr -s '\t ' ' '
timed "ls .kms/keys" "$WORK/large" ls "$MNT/.kms/keys"
timed "ls .kms/keys, as one who may use them" "$WORK/large" setpriv --reuid=4001 --clear-groups ls "$MNT/.kms/keys"
timed "ls .kms/keys, as a stranger" "$WORK/large" setpriv --reuid=5001 --clear-groups ls "$MNT/.kms/keys"
timed "ls .kms/keys, as a stranger, again" "$WORK/large" setpriv --reuid=5001 --clear-groups ls "$MNT/.kms/keys"
timed "kmsfs key list" "$WORK/large" "$KMSFS" --at "$MNT" key list
timed "ls .kms/keys/many/grants" "$WORK/large" ls "$MNT/.kms/keys/many/grants"
timed "kmsfs grant list many" "$WORK/large" "$KMSFS" --at "$MNT" grant list many
timed "20,000 opens by the policy, many grants" "$WORK/large" opens 4001 "$MNT/many/7" 20000
timed "20,000 opens by a grant" "$WORK/large" opens 4002 "$MNT/many/7" 20000
timed "20,000 opens by a grant for the item" "$WORK/large" opens 4003 "$MNT/many/7" 20000
timed "20,000 opens, another key" "$WORK/large" opens 4001 "$MNT/few/7" 20000
id=$("$KMSFS" --at "$MNT" --json grant list many | jq -r '.[0].GrantId')
timed "one grant revoked" "$WORK/large" rm "$MNT/.kms/keys/many/grants/$id.json"
leave
echo "records: $(find "$WORK/large/records" -name '*.1.*' | wc -l) of keys, $(find "$WORK/large/records" -name '*.4.*' | wc -l) of grants, catalog $(stat -c %s "$WORK/large/catalog.a") bytes"
