#!/usr/bin/env bats
# The life of a key on real mounts, with a clock that the test moves: switched off and on, rotated, renamed, deleted.

load common

EKEYREVOKED='Key has been revoked'
ENOKEY='Required key not available'
DAY=86400

setup() {
    new_paths
    export KMSFS_TEST_CLOCK=$T/clock
    clock 0
    start_store --for-tests
    mount_store
    orders
}

# Sets the store's clock so many seconds ahead of the host's; in one step, as the daemon reads it at any time.
clock() { # SECONDS
    echo "$1" >"$T/clock.new"
    mv "$T/clock.new" "$T/clock"
    AHEAD=$1
}

# Days pass, each of them seen by the daemon.
days_pass() { # DAYS
    local day
    for ((day = 0; day < $1; day++)); do
        clock $((AHEAD + DAY))
        jq -e .Time "$MNT/.kms/store.json" >/dev/null
    done
}

state() { jq -r .KeyState "$(KEY_DIR "$@")/key.json"; }
is() { [[ $(state) == "$1" ]]; }
version() { jq -r .CurrentKeyMaterialVersion "$(KEY_DIR)/key.json"; }
is_version() { [[ $(version) == "$1" ]]; }
ctl() { echo "$1" >"$(KEY_DIR)/ctl"; }
result() { cat "$(KEY_DIR)/ctl.result"; }

@test "a disabled key is nobody's, on open files and mappings too, and an enabled one goes on" {
    kmsfs key add-user orders bob
    hold alice r "$MNT/orders/1001.json"
    reader=("$ASK" "$ANSWER")
    equal "$(ask read)" '{"order": 1001, "total": "12.50"}'
    equal "$(ask map)" '{"order": 1001, "total": "12.50"}'
    hold alice + "$MNT/orders/1001.json"
    equal "$(ask read)" '{"order": 1001, "total": "12.50"}'
    as carol kmsfs key disable orders
    equal "$(state)" Disabled
    equal "$(ask read)" EKEYREVOKED
    equal "$(ask 'write x')" EKEYREVOKED
    ASK=${reader[0]} ANSWER=${reader[1]}
    equal "$(ask read)" EKEYREVOKED
    equal "$(ask touch)" SIGBUS
    for user in alice bob; do
        fails_with "$EKEYREVOKED" as "$user" cat "$MNT/orders/1001.json"
        fails_with "$EKEYREVOKED" as "$user" touch "$MNT/orders/new"
        fails_with "$EKEYREVOKED" as "$user" rm -f "$MNT/orders/1001.json"
    done
    # Whom the policy denies learns nothing of the state.
    chmod 755 "$MNT/orders"
    fails_with "$EACCES" as dora cat "$MNT/orders/1001.json"
    as bob ls -l "$MNT/orders" | grep -q 1001.json
    # Who loses his right meanwhile has lost it when the key is back.
    kmsfs key remove-user orders bob
    as carol kmsfs key enable orders
    equal "$(ask read)" '{"order": 1001, "total": "12.50"}'
    equal "$(ask touch)" '{"order": 1001, "total": "12.50"}'
    equal "$(as alice cat "$MNT/orders/1001.json")" '{"order": 1001, "total": "12.50"}'
    fails_with "$EACCES" as bob cat "$MNT/orders/1001.json"
}

@test "who lost his right while the key was off has lost it when it is on again, with his file still open" {
    kmsfs key add-user orders bob
    hold bob r "$MNT/orders/1001.json"
    equal "$(ask map)" '{"order": 1001, "total": "12.50"}'
    kmsfs key disable orders
    kmsfs key remove-user orders bob
    kmsfs key enable orders
    equal "$(as alice cat "$MNT/orders/1001.json")" '{"order": 1001, "total": "12.50"}'
    [[ $(ask read) =~ ^(EACCES|ESTALE)$ ]]
    equal "$(ask touch)" SIGBUS
}

@test "a deletion takes the key's name to order, tells what is lost, and can be called off" {
    fails_with "$EINVAL" ctl 'schedule-deletion 7'
    result | grep -q '^refused: nothing is deleted yet; it would make unreadable: 1 table (orders), 1 item,'
    fails_with "$EINVAL" ctl 'schedule-deletion 7 order'
    fails_with "$EINVAL" ctl 'schedule-deletion 6 orders'
    fails_with "$EINVAL" ctl 'schedule-deletion 31 orders'
    exits_with 1 kmsfs key schedule-deletion orders --days 7
    exits_with 2 kmsfs key schedule-deletion orders --days 6
    kmsfs key blast-radius orders | grep -q '1 table (orders), 1 item, .* bytes in the store, 0 grants'
    exits_with 3 as alice kmsfs key blast-radius orders
    exits_with 3 as alice kmsfs key schedule-deletion orders --days 7 --confirm orders
    equal "$(state)" Enabled
    hold alice r "$MNT/orders/1001.json"
    as carol kmsfs key schedule-deletion orders --days 7 --confirm orders | grep -q '1 table (orders), 1 item'
    equal "$(ask read)" EKEYREVOKED
    equal "$(jq -r '[.KeyState, .Enabled, .PendingDeletionWindowInDays] | @csv' "$(KEY_DIR)/key.json")" \
        '"PendingDeletion",false,7'
    jq -e '.DeletionDate - now | . > 7 * 86400 - 60 and . <= 7 * 86400' "$(KEY_DIR)/key.json"
    for line in enable disable rotate 'describe x' 'schedule-deletion 7 orders'; do
        fails_with "$EINVAL" ctl "$line"
    done
    result | grep -q PendingDeletion
    days_pass 5
    ctl cancel-deletion
    equal "$(state)" Disabled
    fails_with "$EINVAL" ctl cancel-deletion
    ctl enable
    equal "$(ask read)" '{"order": 1001, "total": "12.50"}'
    days_pass 10
    sleep 2
    equal "$(state)" Enabled
}

@test "a jump of the clock and a time without the store count for a day each, unless an administrator confirms" {
    ctl 'schedule-deletion 7 orders'
    clock $((20 * DAY))
    sleep 2
    equal "$(state)" PendingDeletion
    umount_store
    clock $((60 * DAY))
    mount_store
    sleep 2
    equal "$(state)" PendingDeletion
    jq -e '.DeletionDate - .UnobservedSeconds < now + 60 * 86400 and .UnobservedSeconds > 57 * 86400' "$(KEY_DIR)/key.json"
    fails_with "$EINVAL" ctl 'confirm-elapsed'
    result | grep -q '58 days have passed unobserved'
    exits_with 3 as alice kmsfs key confirm-elapsed orders --confirm orders
    equal "$(state)" PendingDeletion
    kmsfs key confirm-elapsed orders --confirm orders
    wait_until 10 is Destroyed
}

@test "a key whose window has passed is destroyed: its items for good, the rest not at all, the receipt stays" {
    kmsfs table create returns --key orders --owner alice --group finance --mode 2770
    kmsfs table create rest --user alice --owner alice --group finance --mode 2770
    as alice item rest/x 'not touched'
    as alice bash -c 'umask 007; cd "$1"; mkdir d; echo one >d/1; echo two >d/2; ln d/2 d/3; ln -s 1 d/link' - "$MNT/orders"
    as alice item returns/y 'sent back'
    kmsfs key rotate orders
    hold alice r "$MNT/orders/1001.json"
    kmsfs key schedule-deletion orders --days 7 --confirm orders
    id=$(jq -r .KeyId "$(KEY_DIR)/key.json")
    mapfile -t tables < <(jq -r .TableId "$MNT"/.kms/tables/{orders,returns}/table.json)
    for name in "$id" "${tables[@]}"; do
        cat "$STORE/records/$name".* | xxd -p | tr -d '\n' | cut -c101-164
    done >"$T/sealed"
    equal "$(wc -l <"$T/sealed")" 3
    equal "$(everything | grep -cF -f "$T/sealed")" 3
    rest_before=$(cd "$STORE/tables/$(jq -r .TableId "$MNT/.kms/tables/rest/table.json")" && find . -type f -exec sha256sum {} + | sort)
    days_pass 6
    sleep 1.5
    equal "$(state)" PendingDeletion
    days_pass 1
    wait_until 10 is Destroyed

    equal "$(ask read)" ENOKEY
    let_go
    for item in orders/1001.json orders/d/1 orders/d/2 orders/d/3 returns/y; do
        fails_with "$ENOKEY" as alice cat "$MNT/$item"
        fails_with "$ENOKEY" as alice sh -c "echo x >>$MNT/$item"
        fails_with "$EACCES" as bob cat "$MNT/$item"
    done
    fails_with "$ENOKEY" as alice readlink -v "$MNT/orders/d/link"
    fails_with "$ENOKEY" as alice touch "$MNT/orders/new"
    fails_with "$ENOKEY" ctl enable
    fails_with "$ENOKEY" ctl cancel-deletion
    everything | lacks_all "$T/sealed"
    equal "$(as alice cat "$MNT/rest/x")" 'not touched'
    equal "$(cd "$STORE/tables/$(jq -r .TableId "$MNT/.kms/tables/rest/table.json")" && find . -type f -exec sha256sum {} + | sort)" "$rest_before"

    # What remains, and that the trail vouches for it.
    receipt=$(KEY_DIR)/receipt.json
    equal "$(jq -r '[.KeyId, .Name, .OrderedByName, .Items, .Grants, (.Tables | length), .PendingDeletionWindowInDays,
        (.KeyMaterialVersions | join("+"))] | join(" ")' "$receipt")" "$id orders root 5 0 2 7 1+2"
    kmsfs audit show --event DeleteKey >"$T/event"
    equal "$(jq -r .additionalEventData.receiptSha256 "$T/event")" "$(sha256sum <"$receipt" | cut -d' ' -f1)"
    equal "$(jq -r .ReceiptSha256 "$(KEY_DIR)/key.json")" "$(sha256sum <"$receipt" | cut -d' ' -f1)"
    equal "$(kmsfs key receipt orders | sha256sum)" "$(sha256sum <"$receipt")"
    fails_with "$EACCES" as dora cat "$receipt"
    fails_with "$ENOENT" cat "$(KEY_DIR rest)/receipt.json"
    exits_with 7 kmsfs key receipt rest
    kmsfs audit verify

    # By Unix rights alone, whatever the policy says: bob is of the group. The sticky bit is the folder's to set.
    as bob rm -r "$MNT/orders/d"
    as bob rm "$MNT/orders/1001.json"
    remount_store
    fails_with "$ENOKEY" as alice cat "$MNT/returns/y"
    equal "$(as alice cat "$MNT/rest/x")" 'not touched'
    rmdir "$MNT/orders"
    kmsfs key rename orders 'orders-of-old'
    mkdir "$MNT/orders"
    equal "$(state)" Enabled
    umount_store
    everything | lacks_all "$T/sealed"
    kmsfs --at "$STORE" key receipt orders-of-old --key-file "$KEYFILE" | jq -e '.Name == "orders"'
}

# Every byte of the store and of the anchor in hexadecimal, a file a line.
everything() {
    local file
    find "$STORE" "$KMSFS_ANCHOR" -type f | while read -r file; do
        xxd -p "$file" | tr -d '\n'
        echo
    done
}

# None of the file's lines is in standard input.
lacks_all() { # FILE
    not grep -qF -f "$1"
}

@test "a deletion that is due is carried out by the next mount, and by none that is read-only" {
    ctl 'schedule-deletion 7 orders'
    days_pass 6
    umount_store
    clock $((AHEAD + 2 * DAY))
    mount_store --read-only
    sleep 2
    equal "$(state)" PendingDeletion
    fails_with "$EROFS" ctl cancel-deletion
    remount_store
    wait_until 10 is Destroyed
}

@test "a kill in the middle of a deletion's window loses no day that was kept" {
    ctl 'schedule-deletion 7 orders'
    days_pass 3
    # Every change keeps the time.
    kmsfs key create other
    kill_daemon
    expect_unclean_stop
    mount_store
    jq -e '.DeletionDate - (now + 3 * 86400) | . > 3 * 86400 and . < 4.1 * 86400' "$(KEY_DIR)/key.json"
}

@test "rotated 25 times with items and tables made between, everything is readable" {
    for ((n = 2; n <= 26; n++)); do
        kmsfs key rotate orders >/dev/null
        as alice item "orders/$n" "item $n"
        kmsfs table create "t$n" --key orders --owner alice --group finance --mode 2770 >/dev/null
        as alice item "t$n/x" "in table $n"
    done
    equal "$(version)" 26
    remount_store
    for ((n = 2; n <= 26; n++)); do
        equal "$(cat_as_alice "$MNT/orders/$n" "$MNT/t$n/x")" "item $n"$'\n'"in table $n"
    done
    equal "$(as alice cat "$MNT/orders/1001.json")" '{"order": 1001, "total": "12.50"}'
    equal "$(jq '.KeyMaterialVersions | length' "$(KEY_DIR)/key.json")" 26
}

cat_as_alice() { as alice cat "$@"; }

@test "the calendar rotates a key, and makes up for what was missed, once" {
    exits_with 1 kmsfs key auto-rotate orders 89
    exits_with 2 kmsfs key auto-rotate orders often
    kmsfs key auto-rotate orders 90
    equal "$(jq -r '[.KeyRotationEnabled, .RotationPeriodInDays] | @csv' "$(KEY_DIR)/key.json")" 'true,90'
    clock $((91 * DAY))
    wait_until 10 is_version 2
    equal "$(as alice cat "$MNT/orders/1001.json")" '{"order": 1001, "total": "12.50"}'
    umount_store
    clock $((400 * DAY))
    mount_store
    wait_until 10 is_version 3
    sleep 2
    equal "$(version)" 3
    equal "$(jq -r '.KeyMaterialVersions[-1].RotationType' "$(KEY_DIR)/key.json")" AUTOMATIC
    [[ $(kmsfs audit show --event RotateKey | wc -l) == 2 ]]
    kmsfs key auto-rotate orders off
    jq -e '.KeyRotationEnabled == false and .NextRotationDate == null' "$(KEY_DIR)/key.json"
    equal "$(as alice cat "$MNT/orders/1001.json")" '{"order": 1001, "total": "12.50"}'
}

@test "a renamed key keeps its tables, and takes no name that is taken" {
    kmsfs key create other
    exits_with 1 kmsfs key rename orders other
    exits_with 3 as carol kmsfs key rename orders carols
    kmsfs key rename orders sales
    fails_with "$ENOENT" stat "$(KEY_DIR)"
    equal "$(jq -r .KeyName "$MNT/.kms/tables/orders/table.json")" sales
    equal "$(as alice cat "$MNT/orders/1001.json")" '{"order": 1001, "total": "12.50"}'
    as carol kmsfs key disable sales
    fails_with "$EKEYREVOKED" as alice cat "$MNT/orders/1001.json"
    remount_store
    equal "$(state sales)" Disabled
}

@test "the custodian of an unmounted store does the same, with a reason" {
    umount_store
    at() { kmsfs --at "$STORE" key "$@" --key-file "$KEYFILE"; }
    fails_with 'reason' at disable orders
    at disable orders --reason 'a stolen laptop'
    fails_with 'Disabled' at rotate orders --reason 'it is off'
    at enable orders --reason found
    at rotate orders --reason 'just so'
    fails_with '1 table (orders), 1 item' at schedule-deletion orders --days 7 --reason 'what if'
    at schedule-deletion orders --days 7 --confirm orders --reason 'it must go'
    at describe orders | grep -q PendingDeletion
    mount_store
    days_pass 7
    wait_until 10 is Destroyed
    equal "$(jq -r .Reason "$(KEY_DIR)/receipt.json")" 'it must go'
    [[ $(kmsfs audit show --event DisableKey | jq -r .requestParameters.reason) == 'a stolen laptop' ]]
}

@test "a clock set back does not revive what has expired, over a remount, a kill and without the store" {
    clock 3600
    expiry=$(date -u -d "@$(($(date +%s) + 3605))" +%Y-%m-%dT%H:%M:%SZ)
    policy_with orders "(.Statement[] | select(.Sid == \"Key users\")) += {\"Condition\":
        {\"DateLessThan\": {\"aws:CurrentTime\": \"$expiry\"}}}" >"$T/p.json"
    kmsfs policy put orders "$T/p.json"
    equal "$(as alice cat "$MNT/orders/1001.json")" '{"order": 1001, "total": "12.50"}'
    hold alice r "$MNT/orders/1001.json"
    clock 7200
    expired() { fails_with "$EACCES" as alice cat "$MNT/orders/1001.json"; }
    expired
    wait_until 10 lost
    clock -90000
    expired
    lost
    let_go
    remount_store
    expired
    jq -e '.TimeAheadOfClock > 95000' "$MNT/.kms/store.json"
    kmsfs key create other
    kill_daemon
    expect_unclean_stop
    mount_store
    expired
    # The remedy for a clock that was ahead is an administrator's, and in the trail.
    fails_with "$EACCES" as alice bash -c "echo reset-clock >$MNT/.kms/ctl"
    kmsfs reset-clock
    equal "$(as alice cat "$MNT/orders/1001.json")" '{"order": 1001, "total": "12.50"}'
    [[ $(kmsfs audit show --event ResetClock | jq -r 'select(.errorCode | not) | .additionalEventData.secondsBack') -gt 95000 ]]
}

lost() { [[ $(ask read) =~ ^(EACCES|ESTALE)$ ]]; }

@test "only a store made for tests has a clock that can be moved, and it says so" {
    kmsfs --json status --at "$MNT" | jq -e .ForTests
    umount_store
    rm -r "$STORE"
    exits_with 1 start_store
    env -u KMSFS_TEST_CLOCK kmsfs init "$STORE" --key-file "$KEYFILE"
    expect_log 'not made for tests'
    fails_with 'not made for tests' mount_store
    fails_with 'not made for tests' kmsfs --at "$STORE" key list --key-file "$KEYFILE"
    unset KMSFS_TEST_CLOCK
    mount_store
    kmsfs --json status --at "$MNT" | jq -e '.ForTests == false'
}

@test "records from before a destruction do not bring the key back" {
    id=$(jq -r .KeyId "$(KEY_DIR)/key.json") table=$(jq -r .TableId "$MNT/.kms/tables/orders/table.json")
    ctl 'schedule-deletion 7 orders'
    mkdir "$T/old"
    cp "$STORE/records/$id".* "$STORE/records/$table".* "$T/old"
    days_pass 7
    wait_until 10 is Destroyed
    umount_store
    cp "$T"/old/* "$STORE/records/"
    expect_log 'no change has listed'
    mount_store
    equal "$(state)" Destroyed
    fails_with "$ENOKEY" as alice cat "$MNT/orders/1001.json"
    for record in "$T"/old/*; do
        fails_with "$ENOENT" stat "$STORE/records/${record##*/}"
    done
    # In the place of those that count they are none.
    umount_store
    for record in "$T"/old/*; do
        name=${record##*/}
        # The one generation that is there.
        counts=("$STORE/records/${name%.*}".*)
        cp "$record" "${counts[0]}"
    done
    mount_store
    as alice cat "$MNT/orders/1001.json" >"$T/said" 2>&1 || true
    lacks 12.50 <"$T/said"
    fails_with "$ENOENT" stat "$(KEY_DIR)"
}

@test "a kill at any moment around a destruction leaves the key waiting or destroyed, and nothing else touched" {
    expect_unclean_stop
    expect_log 'no change has listed'
    for ((n = 0; n < 6; n++)); do
        kmsfs table create "t$n" --user alice --owner alice --group finance --mode 2770
        as alice item "t$n/x" "item $n"
        echo "schedule-deletion 7 t$n" >"$(KEY_DIR "t$n")/ctl"
        days_pass 6
        kmsfs key create "k$n"
        days_pass 1
        sleep "$(printf '0.%03d' $((RANDOM % 1000)))"
        kill_daemon
        mount_store
        [[ $(state "t$n") =~ ^(PendingDeletion|Destroyed)$ ]]
        days_pass 1
        wait_until 10 destroyed "t$n"
        fails_with "$ENOKEY" as alice cat "$MNT/t$n/x"
        equal "$(kmsfs key receipt "t$n" | jq -r .Items)" 1
        equal "$(as alice cat "$MNT/orders/1001.json")" '{"order": 1001, "total": "12.50"}'
    done
    kmsfs audit verify
}

destroyed() { [[ $(state "$1") == Destroyed ]]; }

@test "a full disk keeps no key from its end" {
    umount_store
    rm -r "$STORE"
    # Its mount goes with the namespace of these tests.
    STORE=$(mktemp -d "$KMSFS_TEST_DIR/disk.XXXXXX")
    mount -t tmpfs -o size=24m tmpfs "$STORE"
    STORE=$STORE/store
    start_store --for-tests
    mount_store
    orders
    expect_log 'disk is full|no space is kept'
    kmsfs table create rest --user alice --owner alice --group finance --mode 2770
    ctl 'schedule-deletion 7 orders'
    fails_with 'No space left' as alice dd if=/dev/zero of="$MNT/rest/filler" bs=64K status=none
    days_pass 7
    wait_until 10 is Destroyed
    fails_with "$ENOKEY" as alice cat "$MNT/orders/1001.json"
    as alice rm "$MNT/rest/filler"
    as bob rm "$MNT/orders/1001.json"
    kmsfs audit verify
}
