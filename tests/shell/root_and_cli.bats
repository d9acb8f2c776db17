#!/usr/bin/env bats
# The command line as scripts meet it: credentials, mounting and unmounting, exit codes, messages.

load common

setup() { new_paths; }

# What `status` says of this test's mount; others may be there.
status_of() { # MEMBER
    kmsfs --json status | jq -r --arg mnt "$MNT" ".[] | select(.Mountpoint == \$mnt) | $1"
}

# --- credentials ---------------------------------------------------------------------------------------------------

@test "a passphrase, from a file, from standard input, from a program" {
    (umask 077 && echo 'correct horse' >"$T/words")
    kmsfs init "$STORE" --passphrase-file "$T/words" --kdf-memory 64
    equal "$(stat -c %a "$STORE")" 700
    mount_with() {
        bounded 30 kmsfs mount "$STORE" "$MNT" --log-file "$LOG" "$@" 3>&-
        umount_store
    }
    mount_with --passphrase-file "$T/words"
    printf 'correct horse' | mount_with --passphrase-file -
    mount_with --extpass "cat $T/words"
    mount_with --extpass printf --extpass '%s' --extpass 'correct horse'
    mount_with -o "passphrase-file=$T/words"
    mount_with -o "extpass=cat $T/words"
    mkdir -m 700 "$T/credentials"
    cp "$T/words" "$T/credentials/kmsfs.passphrase"
    CREDENTIALS_DIRECTORY=$T/credentials mount_with
}

@test "a prompt asks twice at init and once at mount" {
    terminal root "kmsfs init $STORE --kdf-memory 64"
    sees 'New passphrase:' && types 'one\r'
    sees 'again:' && types 'other\r'
    exits_with 4 leaves
    not test -e "$STORE/root"

    terminal root "kmsfs init $STORE --kdf-memory 64"
    sees 'New passphrase:' && types 'correct horse\r'
    sees 'again:' && types 'correct horse\r'
    leaves
    lacks 'correct horse' <"$SCREEN"

    terminal root "kmsfs mount $STORE $MNT --log-file $LOG"
    sees 'Passphrase:' && types 'correct horse\r'
    leaves
    umount_store

    expect_log 'no unlock slot opens'
    terminal root "kmsfs mount $STORE $MNT --log-file $LOG"
    sees 'Passphrase:' && types 'wrong\r'
    exits_with 4 leaves
}

@test "without a terminal and without a credential nothing hangs" {
    exits_with 4 bounded 20 setsid kmsfs init "$STORE" </dev/null
    not test -e "$STORE/root"
}

@test "a wrong passphrase or key file: code 4, one clear line, no mount" {
    start_store
    (umask 077 && head -c 64 /dev/urandom >"$T/other" && echo wrong >"$T/words")
    expect_log 'unlock slot'
    for wrong in "--key-file $T/other" "--passphrase-file $T/words"; do
        # shellcheck disable=SC2086
        exits_with 4 bounded 60 kmsfs mount "$STORE" "$MNT" $wrong --log-file "$LOG" 2>"$T/message"
        equal "$(wc -l <"$T/message")" 1
    done
    not mountpoint -q "$MNT"
}

@test "secrets that others can read are refused" {
    for mode in 644 640 604 660; do
        chmod "$mode" "$KEYFILE"
        exits_with 4 kmsfs init "$STORE" --key-file "$KEYFILE"
        exits_with 4 kmsfs init "$STORE" --passphrase-file "$KEYFILE"
    done
    chmod 600 "$KEYFILE"
    start_store
    chmod 640 "$KEYFILE"
    exits_with 4 kmsfs mount "$STORE" "$MNT" --key-file "$KEYFILE" --log-file "$LOG"
}

@test "slots: a second passphrase opens, a removed one does not, the last one stays" {
    start_store --label first
    (umask 077 && echo 'second words' >"$T/words")
    kmsfs slot add "$STORE" --key-file "$KEYFILE" --new-passphrase-file "$T/words" --label second
    equal "$(kmsfs --json slot list "$STORE" --key-file "$KEYFILE" | jq -r '.[] | .Kind + " " + .Label' | paste -sd,)" \
        'key-file first,passphrase second'
    bounded 60 kmsfs mount "$STORE" "$MNT" --passphrase-file "$T/words" --log-file "$LOG" 3>&-
    umount_store
    slot=$(kmsfs --json slot list "$STORE" --key-file "$KEYFILE" | jq -r '.[] | select(.Kind == "key-file") | .SlotId')
    kmsfs slot remove "$STORE" "$slot" --passphrase-file "$T/words"
    expect_log 'unlock slot'
    exits_with 4 kmsfs mount "$STORE" "$MNT" --key-file "$KEYFILE" --log-file "$LOG"
    slot=$(kmsfs --json slot list "$STORE" --passphrase-file "$T/words" | jq -r '.[0].SlotId')
    exits_with 1 kmsfs slot remove "$STORE" "$slot" --passphrase-file "$T/words"
    bounded 60 kmsfs mount "$STORE" "$MNT" --passphrase-file "$T/words" --log-file "$LOG" 3>&-
}

# --- init and mount ------------------------------------------------------------------------------------------------

@test "init leaves alone what is there" {
    mkdir "$STORE"
    echo mine >"$STORE/file"
    exits_with 1 kmsfs init "$STORE" --key-file "$KEYFILE"
    equal "$(cat "$STORE/file")" mine
    rm "$STORE/file"
    start_store
    cp "$STORE/root" "$T/root"
    exits_with 1 kmsfs init "$STORE" --key-file "$KEYFILE"
    cmp "$STORE/root" "$T/root"
}

@test "what is no store is not mounted: code 7" {
    mkdir "$T/empty"
    exits_with 7 kmsfs mount "$T/empty" "$MNT" --key-file "$KEYFILE" --log-file "$LOG"
    exits_with 7 kmsfs mount "$T/nothing" "$MNT" --key-file "$KEYFILE" --log-file "$LOG"
    start_store
    exits_with 7 kmsfs mount "$STORE" "$T/no-mount-point" --key-file "$KEYFILE" --log-file "$LOG" 2>"$T/message"
    grep -q "$T/no-mount-point: No such file" "$T/message"
}

@test "a mount answers when the command returns, and findmnt knows it" {
    start_store
    mount_store
    ls "$MNT/.kms" >/dev/null
    equal "$(findmnt -no FSTYPE "$MNT")" fuse.kmsfs
    equal "$(findmnt -no SOURCE "$MNT")" "$STORE"
    for option in nosuid nodev; do findmnt -no OPTIONS "$MNT" | grep -qw "$option"; done
    equal "$(status_of .State)" serving
    equal "$(status_of .Pid)" "$(daemon_pid)"
    kmsfs status | grep -qE "^$MNT +$STORE +serving"
}

@test ".kms is not listed, and show-kms lists it" {
    start_store
    mount_store
    mkdir "$MNT/t"
    equal "$(ls -A "$MNT")" t
    ls "$MNT/.kms/keys" >/dev/null
    remount_store -o show-kms
    equal "$(ls -A "$MNT" | paste -sd' ')" '.kms t'
}

@test "a busy store: code 5, and the message names pid, host and mount point" {
    start_store
    mount_store
    mkdir "$T/second"
    exits_with 5 kmsfs mount "$STORE" "$T/second" --key-file "$KEYFILE" --log-file "$T/second.log" 2>"$T/message"
    grep -q "$(daemon_pid)" "$T/message"
    grep -qF "$(uname -n)" "$T/message"
    grep -qF "$MNT" "$T/message"
    not mountpoint -q "$T/second"
    exits_with 5 kmsfs --at "$STORE" key list --key-file "$KEYFILE"
}

@test "umount returns when the store may be copied; a used mount: code 5" {
    start_store
    mount_store
    mkdir "$MNT/t"
    (cd "$MNT/t" && exits_with 5 kmsfs umount "$MNT" 2>"$T/message")
    grep -q 'in use' "$T/message"
    pid=$(daemon_pid)
    kmsfs umount "$MNT"
    not kill -0 "$pid" 2>/dev/null
    exits_with 7 kmsfs umount "$MNT"
    exits_with 7 kmsfs umount /proc
}

@test "plain umount, fusermount3 and SIGTERM unmount cleanly" {
    start_store
    for how in 'umount MNT' 'fusermount3 -u MNT' 'kill PID' 'kill -INT PID'; do
        mount_store
        pid=$(daemon_pid)
        how=${how/MNT/$MNT}
        ${how/PID/$pid}
        daemon_gone 30
        not mountpoint -q "$MNT"
    done
    mount_store
    lacks 'good order' < <(grep 'good order' "$LOG" || true)
}

@test "the mount of a killed daemon is recognised, cleared and mounted anew" {
    start_store
    mount_store
    orders
    kill_daemon
    is_stale "$MNT"
    equal "$(status_of .State)" stale
    exits_with 7 kmsfs key list
    mount_store
    equal "$(as alice cat "$MNT/orders/1001.json")" '{"order": 1001, "total": "12.50"}'
    kill_daemon
    kmsfs umount "$MNT"
    not mountpoint -q "$MNT"
    expect_unclean_stop
}

@test "in the foreground it stays until it is unmounted" {
    start_store
    bounded 60 kmsfs mount "$STORE" "$MNT" --key-file "$KEYFILE" --foreground 2>"$LOG" 3>&- &
    job=$!
    wait_until 20 test -d "$MNT/.kms"
    umount "$MNT"
    wait "$job"
}

@test "mount(8) mounts it, by type, by helper and from fstab" {
    start_store
    mkdir "$T/sbin"
    cp "$KMSFS_TEST_DIR/bin/kmsfs" "$T/sbin/kmsfs"
    ln -s kmsfs "$T/sbin/mount.kmsfs"
    mount --bind "$T/sbin" /usr/local/sbin
    PATH=/usr/local/sbin:$PATH

    mount.kmsfs "$STORE" "$MNT" -n -v -o "rw,nofail,key-file=$KEYFILE,log-file=$LOG" 3>&-
    umount_store
    mount.kmsfs "$STORE" "$MNT" -f -o "key-file=$KEYFILE"
    not mountpoint -q "$MNT"
    exits_with 2 mount.kmsfs "$STORE" "$MNT" -o "key-file=$KEYFILE,no-such-option"
    mount.kmsfs "$STORE" "$MNT" -s -o "key-file=$KEYFILE,log-file=$LOG,no-such-option" 3>&-
    umount_store

    mount -t fuse.kmsfs "$STORE" "$MNT" -o "key-file=$KEYFILE,log-file=$LOG,noexec" 3>&-
    equal "$(findmnt -no FSTYPE "$MNT")" fuse.kmsfs
    findmnt -no OPTIONS "$MNT" | grep -qw noexec
    umount_store

    cp /etc/fstab "$T/fstab" 2>/dev/null || : >"$T/fstab"
    echo "$STORE $MNT fuse.kmsfs key-file=$KEYFILE,log-file=$LOG,ro,nofail,x-systemd.requires-mounts-for=/srv 0 0" >>"$T/fstab"
    [[ -e /etc/fstab ]] || : >/etc/fstab
    mount --bind "$T/fstab" /etc/fstab
    mount "$MNT" 3>&-
    fails_with "$EROFS" mkdir "$MNT/t"
    umount "$MNT"
    daemon_gone 30
    umount /etc/fstab
    # A read-only daemon leaves no pid in the store; it is gone when its program is not in use any more.
    wait_until 30 umount /usr/local/sbin
}

@test "without /dev/fuse: code 8, one clear line" {
    start_store
    code=0
    unshare --mount sh -c '
        mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom c 1 9 || exit 99
        exec "$@"' without-fuse kmsfs mount "$STORE" "$MNT" --key-file "$KEYFILE" --log-file "$LOG" 2>"$T/message" || code=$?
    equal "$code" 8
    grep -q /dev/fuse "$T/message"
    equal "$(wc -l <"$T/message")" 1
}

@test "not root and no fusermount3: one clear line" {
    as alice env -u KMSFS_ANCHOR sh -c "umask 077; head -c 64 /dev/urandom >\$HOME/key; mkdir -p \$HOME/mnt; kmsfs init \$HOME/store --key-file \$HOME/key"
    mkdir "$T/path"
    cp "$KMSFS_TEST_DIR/bin/kmsfs" "$T/path/"
    home=$KMSFS_TEST_DIR/home/alice
    code=0
    as alice env -u KMSFS_ANCHOR PATH="$T/path" kmsfs mount "$home/store" "$home/mnt" --key-file "$home/key" \
        --log-file "$home/log" 2>"$T/message" || code=$?
    equal "$code" 8
    grep -q fusermount3 "$T/message"
    equal "$(wc -l <"$T/message")" 1
}

# --- the rest of the contract ----------------------------------------------------------------------------------------

@test "each exit code, as docs/cli.md has it" {
    start_store
    mount_store
    orders
    exits_with 0 kmsfs key list
    exits_with 2 kmsfs
    exits_with 2 kmsfs frobnicate
    exits_with 2 kmsfs key
    exits_with 2 kmsfs policy put
    exits_with 2 kmsfs key add-user orders 1001
    exits_with 2 env -u KMSFS_AT kmsfs key list
    exits_with 3 as dora kmsfs policy get orders
    exits_with 7 kmsfs key describe no-such-key
    exits_with 7 kmsfs table describe no-such-table
    exits_with 7 kmsfs --at /proc key list
    exits_with 7 kmsfs why /etc/passwd
    exits_with 1 kmsfs policy put orders <(echo '{')
    fails_with nobody-of-this-name kmsfs key add-user orders nobody-of-this-name
    exits_with 0 kmsfs --help >/dev/null
    exits_with 0 kmsfs --version >/dev/null
    for words in init mount umount key 'key create' table 'table create' policy 'policy put' why slot anchor audit status; do
        # shellcheck disable=SC2086
        kmsfs $words --help | grep -q Usage
    done
}

@test "errors go to standard error, results to standard output, --json is JSON" {
    start_store
    mount_store
    orders
    kmsfs --json key list | jq -e 'map(.Name) | index("orders")' >/dev/null
    kmsfs --json table list | jq -e '.[0].Name == "orders"' >/dev/null
    kmsfs --json table describe orders | jq -e '.KeyName == "orders"' >/dev/null
    kmsfs --json key create second --admin root | jq -e '.Name == "second"' >/dev/null
    kmsfs --json key add-user second bob | jq -e .Result >/dev/null
    equal "$(kmsfs key describe no-such-key 2>/dev/null || true)" ''
    kmsfs audit show | head -n 1 | jq -e .eventName >/dev/null
}

@test "whoami tells uid, gid and groups" {
    start_store
    mount_store
    equal "$(as alice cat "$MNT/.kms/whoami" | head -n1)" 'uid 61001 (alice)'
    as alice cat "$MNT/.kms/whoami" | grep '^groups' | grep -q '62000 (finance)'
    equal "$(setpriv --reuid=4242 --regid=4242 --clear-groups cat "$MNT/.kms/whoami" | head -n1 | cut -d' ' -f1,2)" 'uid 4242'
    kmsfs --json status --at "$MNT" | jq -r .Caller | grep -q 'uid 0'
}

@test "an added user who lacks the Unix right is named, one who has it is not" {
    start_store
    mount_store
    orders
    kmsfs key add-user orders dora bob group:readers 2>"$T/message"
    grep -q 'dora may not enter or list' "$T/message"
    grep -q 'group:readers may not' "$T/message"
    lacks bob <"$T/message"
    setfacl -m u:dora:rx "$MNT/orders"
    kmsfs key remove-user orders dora
    kmsfs key add-user orders dora 2>"$T/message"
    lacks dora <"$T/message"
}

@test "an unmounted store: the custodian may mend a policy, says why, and stands in the trail" {
    start_store
    mount_store
    orders
    umount_store
    exits_with 2 kmsfs --at "$STORE" key add-user orders bob --key-file "$KEYFILE"
    (umask 077 && head -c 64 /dev/urandom >"$T/other")
    exits_with 4 kmsfs --at "$STORE" key list --key-file "$T/other"
    kmsfs --at "$STORE" key list --key-file "$KEYFILE" | grep -q orders
    kmsfs --at "$STORE" table list --key-file "$KEYFILE" | grep -q orders
    kmsfs --at "$STORE" key add-user orders bob --key-file "$KEYFILE" --reason 'the last administrator left'
    kmsfs --at "$STORE" audit show --key-file "$KEYFILE" | grep -q 'the last administrator left'
    mount_store
    equal "$(as bob cat "$MNT/orders/1001.json")" '{"order": 1001, "total": "12.50"}'
}

@test "a store that is older than its anchor mounts after anchor accept alone" {
    start_store
    mount_store
    orders
    umount_store
    cp -a "$STORE" "$T/backup"
    mount_store
    kmsfs key add-user orders bob
    umount_store
    rm -rf "$STORE"
    cp -a "$T/backup" "$STORE"
    expect_log 'anchor accept'
    exits_with 6 kmsfs mount "$STORE" "$MNT" --key-file "$KEYFILE" --log-file "$LOG" 2>"$T/message"
    grep -q 'anchor accept' "$T/message"
    kmsfs anchor accept "$STORE" --key-file "$KEYFILE" --reason 'restored from the backup'
    mount_store
    fails_with "$EACCES" as bob cat "$MNT/orders/1001.json"
    kmsfs audit show --event AcceptAnchor | grep -q 'restored from the backup'
    umount_store
    # Once is enough, and a second time there is nothing to accept.
    kmsfs anchor accept "$STORE" --key-file "$KEYFILE" | grep -q 'nothing to accept'
}
