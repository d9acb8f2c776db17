#!/usr/bin/env bats
# The whole of pjdfstest on a table. tests/posix/pjdfstest.toml names the tests that cannot pass; another that fails, and one
# of these that passes, is a failure. tests/run.sh installs the program.

load common

setup() {
    new_paths
    start_store
    mount_store
    install_tool pjdfstest
    # What the EROFS tests call: `-i`, since a table is remounted by the kernel alone.
    printf '#!/bin/sh\nexec %s -i "$@"\n' "$(command -v mount)" >"$T/mount"
    chmod 755 "$T/mount"
}

# Runs the suite in a table; `other` is what its EXDEV tests take for another file system.
suite() { # TABLE OTHER
    sed 's/^allow_remount = true/allow_remount = false/' "$ROOT/tests/posix/pjdfstest.toml" >"$T/no-remount.toml"
    run_tests "$1" "$2" "$T/no-remount.toml"
    # The suite is whole.
    grep -x 'Summary: 0 failed, 14 skipped, 298 passed, 86 expected failures, 398 total' "$T/report"
    # The kernel tells no program a FUSE file system's LINK_MAX; posix_more.bats tests it.
    equal "$(skipped | grep -v '::erofs_')" link::link_count_max
    # By themselves: a test of open(2) leaves files open for writing, with which nothing can be remounted.
    skipped | grep '::erofs_' >"$T/erofs"
    equal "$(wc -l <"$T/erofs")" 13
    run_tests "$1" "$2" "$ROOT/tests/posix/pjdfstest.toml" ::erofs_
    equal "$(grep -c '::erofs_.* ok$' "$T/report")" 13
    equal "$(ls -A "$MNT/$1")" ''
}

run_tests() { # TABLE OTHER CONFIGURATION [PATTERN]
    local status=0
    PATH=$T:$PATH bounded 300 pjdfstest -c "$3" -p "$MNT/$1" -s "$2" ${4+"$4"} >"$T/report" 2>&1 || status=$?
    sed -i 's/\x1b\[[0-9;]*m//g' "$T/report"
    ((status)) || return 0
    grep -A1 -E ' (FAILED|PASSED UNEXPECTEDLY)$' "$T/report" || tail -n 50 "$T/report"
    return 1
}

skipped() { awk '$2 == "skipped" { print $1 }' "$T/report"; }

@test "pjdfstest in a customer table, by key users" {
    kmsfs table create a --user root --user alice --user dora --owner root --mode 755
    mkdir "$T/other"
    mount -t tmpfs none "$T/other"
    suite a "$T/other"
    umount "$T/other"
}

@test "pjdfstest in an owned table; another table is another file system" {
    kmsfs table create a --encryption owned --owner root --mode 755
    kmsfs table create b --encryption owned --owner root --mode 755
    suite a "$MNT/b"
}
