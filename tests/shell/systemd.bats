#!/usr/bin/env bats
# The systemd unit and the fstab lines of mount-examples/, read by those who will read them.

load common

setup() {
    new_paths
    mkdir "$T/bin" "$T/units"
    cp "$KMSFS_TEST_DIR/bin/kmsfs" "$T/bin/"
    # Where the unit looks for it.
    mount --bind "$T/bin" /usr/local/bin
}

eval "common_$(declare -f teardown)"
teardown() {
    umount /usr/local/bin
    common_teardown
}

verify() { bounded 60 systemd-analyze verify --man=no --recursive-errors=no "$@" 2>&1; }

@test "systemd takes every line of the unit, as a template and as an instance" {
    cp "$ROOT/mount-examples/kmsfs@.service" "$T/units/"
    for unit in kmsfs@.service kmsfs@orders.service; do
        equal "$(verify "$T/units/$unit")" ''
    done
    # It does read them.
    sed -i 's/^Type=notify/Type=notifies/' "$T/units/kmsfs@.service"
    fails_with 'service type' verify "$T/units/kmsfs@.service"
}

@test "what the unit starts serves in the foreground, says READY=1 to systemd, and ends in good order with SIGTERM" {
    command=$(sed -n 's/^ExecStart=//p' "$ROOT/mount-examples/kmsfs@.service")
    equal "$command" '/usr/local/bin/kmsfs mount --foreground /srv/%i /mnt/%i'
    start_store
    mkdir -m 700 "$T/credentials"
    cp "$KEYFILE" "$T/credentials/kmsfs.key"
    command=${command//\/srv\/%i/$STORE}
    # The service manager's side of sd_notify(3).
    background bounded 120 probe notified "$T/notify" >"$T/notified"
    wait_until 20 test -S "$T/notify"
    CREDENTIALS_DIRECTORY=$T/credentials NOTIFY_SOCKET=$T/notify ${command//\/mnt\/%i/$MNT} 2>"$LOG" 3>&- &
    daemon=$!
    wait_until 30 grep -q '^READY=1' "$T/notified"
    equal "$(findmnt -no FSTYPE "$MNT")" fuse.kmsfs
    kill -TERM "$daemon"
    wait "$daemon"
    wait_until 20 grep -q '^STOPPING=1' "$T/notified"
    not mountpoint -q "$MNT"
    await
}

@test "the fstab lines can be parsed, and mount as they stand but for their paths" {
    findmnt --verify --tab-file "$ROOT/mount-examples/fstab.example" >"$T/said" 2>&1 || true
    grep -q '^0 parse errors' "$T/said"
    start_store
    line=$(grep -m1 '^/srv/store' "$ROOT/mount-examples/fstab.example" |
        sed "s#/etc/kmsfs/store.key#$KEYFILE#; s#/var/log/kmsfs.log#$LOG#; s#^/srv/store#$STORE#; s#/mnt/kms#$MNT#; s#=/srv/store#=$STORE#")
    echo "$line" >"$T/fstab"
    mount --fstab "$T/fstab" "$MNT" 3>&-
    equal "$(findmnt -no FSTYPE,SOURCE "$MNT" | tr -s ' ')" "fuse.kmsfs $STORE"
    umount_store
}
