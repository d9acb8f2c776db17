#!/usr/bin/env bats
# fsx: random reads, writes, mappings, cuts, holes, syncs on one item, each read compared with what it should be. The seed
# makes a run repeatable. KMSFS_FSX_SEEDS and KMSFS_FSX_OPERATIONS say how many; tests/run.sh installs the program.

load common

SEEDS=${KMSFS_FSX_SEEDS:-2}
OPERATIONS=${KMSFS_FSX_OPERATIONS:-10000}

setup() {
    new_paths
    start_store
    mount_store
    install_tool fsx
    kmsfs table create a --user alice --owner alice --mode 700
}

exercise() { # SEED CONFIGURATION OPERATIONS
    AS_LIMIT=1200 as alice fsx -f "$2" -S "$1" -N "$3" -P "$KMSFS_TEST_DIR/home/alice" "$MNT/a/$1" >"$T/report" 2>&1 && return
    tail -n 100 "$T/report"
    return 1
}

exercise_all() { # CONFIGURATION OPERATIONS
    for ((seed = 1; seed <= SEEDS; seed++)); do
        exercise "$seed" "$1" "$2"
    done
    # What it left is the same after the daemon has ended.
    as alice sha256sum "$MNT"/a/* >"$T/before"
    remount_store
    as alice sha256sum "$MNT"/a/* | diff "$T/before" -
}

@test "fsx, mappings included" {
    exercise_all "$ROOT/tests/posix/fsx.toml" "$OPERATIONS"
}

@test "fsx on an item that is now in one page, now in several" {
    sed 's/^flen = .*/flen = 12000/; s/^max = .*/max = 3000/' "$ROOT/tests/posix/fsx.toml" >"$T/small.toml"
    exercise_all "$T/small.toml" "$OPERATIONS"
}
