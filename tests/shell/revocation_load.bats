#!/usr/bin/env bats
# Revocation under load: the right of one user taken 200 times at random instants, while his handles are open, read and
# mapped, beside seven others who read the same items and go on.

load common

ROUNDS=${ROUNDS:-200}

setup() {
    new_paths
    start_store
    mount_store
    cc -O1 -Wall -Wextra -Werror -pthread -o "$T/revocation_load" "$ROOT/tests/shell/helpers/revocation_load.c"
    chmod 755 "$T/revocation_load"
    kmsfs key create load --admin root --user dora
    for n in 1 2 3 4; do
        kmsfs table create "t$n" --key load --owner dora --group finance --mode 2775
        as dora bash -c 'umask 022; for i in 1 2; do printf "x%08192d" 0 >"$MNT/$1/item$i"; done' w "t$n"
    done
}

# Runs the load on all items; the summary is in $FOUND.
revoke_under_load() {
    FOUND=$(AS_LIMIT=600 bounded 600 "$T/revocation_load" "$ROUNDS" "$MNT/.kms/keys/load/ctl" bob \
        "$(id -u bob)" "$(id -u dora)" 7 "$MNT"/t[1-4]/item[12])
    echo "# $FOUND" >&3
    for how in read fault open; do
        [[ $(jq ".$how.begun" <<<"$FOUND") -gt $ROUNDS ]] || { echo "hardly any $how was tried: $FOUND"; return 1; }
    done
    equal "$(jq -c '[.others.denied, .others.wrong]' <<<"$FOUND")" '[0,0]'
    [[ $(jq .others.reads <<<"$FOUND") -gt 1000 ]]
}

@test "nothing that is begun after the save succeeds: two tables without a cache, two that expire" {
    kmsfs table set t1 --cache none
    kmsfs table set t2 --cache none
    revoke_under_load
    equal "$(jq -c '[.read.succeeded, .fault.succeeded, .open.succeeded]' <<<"$FOUND")" '[0,0,0]'
}

@test "where it is tolerated, no open succeeds, and those who may read are never sent away" {
    for n in 1 2 3 4; do kmsfs table set "t$n" --on-revoke tolerate; done
    revoke_under_load
    equal "$(jq .open.succeeded <<<"$FOUND")" 0
    equal "$(jq .others.reopened <<<"$FOUND")" 0
}
