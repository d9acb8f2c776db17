#!/usr/bin/env bats
# mount-examples/quickstart.sh does what its transcript says, twice in a row, and leaves the machine as it was.

load common

setup() {
    new_paths
    export KMSFS_QUICKSTART_BINARY=$KMSFS
    QUICKSTART=$ROOT/mount-examples/quickstart.sh
}

teardown() {
    "$QUICKSTART" --clean >/dev/null 2>&1 || true
    rm -rf --one-file-system "$T"
}

machine() { sha256sum /etc/passwd /etc/group /etc/shadow; cut -d' ' -f5,9- /proc/self/mountinfo | sort; ls /srv /mnt /run; }

@test "the whole story, twice, and the machine is as it was" {
    machine >"$T/before"
    for _ in 1 2; do
        bounded 300 "$QUICKSTART" >"$T/transcript" 2>&1 3>&- || { cat "$T/transcript"; return 1; }
        grep -q 'Permission denied' "$T/transcript"
        grep -q '^denied: ' "$T/transcript"
        grep -q 'Côte d.Ivoire\|France\|Norway' "$T/transcript"
    done
    machine | diff "$T/before" -
}

@test "--keep leaves it mounted, says how to go on, and --clean takes it away" {
    machine >"$T/before"
    bounded 300 "$QUICKSTART" --keep >"$T/transcript" 2>&1 3>&- || { cat "$T/transcript"; return 1; }
    enter=$(grep -oE 'nsenter .*alice.*' "$T/transcript" | head -n1)
    [[ -n $enter ]]
    # shellcheck disable=SC2001
    pid=$(sed -E 's/.*(-t|--target[= ]) *([0-9]+).*/\2/' <<<"$enter")
    mnt=$(nsenter -t "$pid" -m awk '/fuse.kmsfs/ { print $5 }' /proc/self/mountinfo)
    nsenter -t "$pid" -m setpriv --reuid=alice --regid=alice --init-groups cat "$mnt/countries/NO.json" | jq -e .name
    "$QUICKSTART" --clean
    machine | diff "$T/before" -
    not kill -0 "$pid" 2>/dev/null
}
