#!/usr/bin/env bats
# A user who is not root makes a store of his own and mounts it with fusermount3: docs/cli.md, section 3.

load common

# In this namespace /dev/fuse is everybody's, as udev makes it.
setup() {
    new_paths
    # Everything is the user's own: he makes it, in his home.
    unset KMSFS_ANCHOR KMSFS_AT XDG_STATE_HOME
    HIS=$KMSFS_TEST_DIR/home/alice/$BATS_TEST_NUMBER
    STORE=$HIS/store MNT=$HIS/mnt LOG=$HIS/daemon.log KEYFILE=$HIS/key
    open_fuse 666
    as alice mkdir -p "$MNT"
    as alice sh -c "umask 077; head -c 64 /dev/urandom >$KEYFILE"
    his kmsfs init "$STORE" --key-file "$KEYFILE"
}

# The common teardown, but for what is not under $T.
eval "common_$(declare -f teardown)"
teardown() {
    local failed=0
    # Root sees it in the mount table alone.
    ! findmnt -n "$MNT" >/dev/null || umount_when_idle || failed=1
    common_teardown || failed=1
    umount /dev/fuse
    rm -rf --one-file-system "$HIS"
    return "$failed"
}

open_fuse() { # MODE
    rm -f "$T/fuse"
    mknod -m "$1" "$T/fuse" c 10 229
    mount --bind "$T/fuse" /dev/fuse
}

# As alice, with a mount namespace's /etc and nothing of root's environment.
his() { as alice env PATH="$KMSFS_TEST_DIR/bin:/usr/local/bin:/usr/bin:/bin" "$@"; }

mount_his() { # [MOUNT OPTION]...
    his kmsfs mount "$STORE" "$MNT" --key-file "$KEYFILE" --log-file "$LOG" "$@" 3>&-
}

# A refusal: its exit code, and one line with these words on standard error.
refused() { # CODE TEXT COMMAND...
    local code=$1 text=$2
    shift 2
    exits_with "$code" "$@" 2>"$T/message" >/dev/null || { cat "$T/message"; return 1; }
    equal "$(wc -l <"$T/message")" 1
    grep -qF -- "$text" "$T/message" || { cat "$T/message"; return 1; }
}

@test "a store of his own: tables, items, policies, why and the trail, and the same after a remount" {
    mount_his
    findmnt -no OPTIONS "$MNT" | grep -q "user_id=61001,.*default_permissions"
    findmnt -no OPTIONS "$MNT" | lacks allow_other
    for option in nosuid nodev; do findmnt -no OPTIONS "$MNT" | grep -qw "$option"; done
    equal "$(his kmsfs --json status | jq -r --arg mnt "$MNT" '.[] | select(.Mountpoint == $mnt) | .State')" serving

    as alice mkdir "$MNT/orders"
    as alice item orders/1 'a first order'
    equal "$(as alice cat "$MNT/orders/1")" 'a first order'
    # Whoever makes a table without being root may administer its key and use it.
    as alice jq -e '[.Statement[] | select(.Principal.Unix == ["alice"]) | .Sid] == ["Key administrators", "Key users"]' \
        "$MNT/.kms/keys/orders/policy.json"
    equal "$(as alice head -n1 "$MNT/.kms/whoami")" 'uid 61001 (alice)'
    his kmsfs --at "$MNT" table create plain --encryption owned
    his kmsfs --at "$MNT" table create shared --encryption managed --group finance --mode 2770
    equal "$(stat -c '%U %G %a' "$STORE"/tables/* | sort | paste -sd,)" \
        'alice alice 755,alice alice 755,alice finance 2770'

    # A policy without him as user, saved by an editor, holds for him too.
    his vim -Nu NONE -es -c '%s/kms:Decrypt",/kms:DescribeKey",/' -c 'wq' "$MNT/.kms/keys/orders/policy.json" </dev/null
    fails_with "$EACCES" as alice cat "$MNT/orders/1"
    exits_with 3 his kmsfs why "$MNT/orders/1" >"$T/why"
    grep -q '^denied: ' "$T/why"
    his kmsfs --at "$MNT" audit show --denied --user alice | grep -q '"eventName":"Decrypt"'
    his kmsfs --at "$MNT" audit verify
    his kmsfs umount "$MNT"
    not findmnt -n "$MNT"

    mount_his
    fails_with "$EACCES" as alice cat "$MNT/orders/1"
    as alice sed -i 's/kms:DescribeKey",/kms:Decrypt",/' "$MNT/.kms/keys/orders/policy.json"
    equal "$(as alice cat "$MNT/orders/1")" 'a first order'
}

@test "all kinds of items, links, attributes and ACLs; whose they become is not his to say" {
    mount_his
    as alice mkdir "$MNT/t"
    as alice sh -c "cd $MNT/t; echo x >item; ln item link; ln -s item symlink; mkfifo fifo; mkdir folder
        setfattr -n user.a -v value item; setfacl -m u:bob:r item; chmod 640 item"
    as alice probe bind "$MNT/t/socket"
    # A group of his, and no other; no other owner.
    as alice chgrp finance "$MNT/t/item"
    fails_with "$EPERM" as alice chgrp readers "$MNT/t/item"
    fails_with "$EPERM" as alice chown bob "$MNT/t/item"
    fails_with "$EPERM" his mknod "$MNT/t/device" c 1 3
    refused 3 'table gift is made, and its owner stays as it is' his kmsfs --at "$MNT" table create gift --owner bob
    his kmsfs umount "$MNT"
    mount_his
    equal "$(cd "$HIS" && as alice stat -c '%n %F %h' mnt/t/fifo mnt/t/folder mnt/t/item mnt/t/link mnt/t/socket mnt/t/symlink |
        sed 's,mnt/t/,,' | paste -sd,)" \
        'fifo fifo 1,folder directory 2,item regular file 2,link regular file 2,socket socket 1,symlink symbolic link 1'
    equal "$(as alice stat -c '%U %G %a' "$MNT/t/item")" 'alice finance 640'
    equal "$(as alice getfattr --only-values -n user.a "$MNT/t/item")" value
    as alice getfacl -cp "$MNT/t/item" | grep -q '^user:bob:r'
}

@test "nobody else is let in, root included; nobody else can unmount it" {
    mount_his
    as alice mkdir "$MNT/t"
    as alice chmod 755 "$KMSFS_TEST_DIR/home/alice" "$HIS"
    for user in bob dora; do
        fails_with "$EACCES" as "$user" ls "$MNT"
        fails_with "$EACCES" as "$user" cat "$MNT/.kms/whoami"
        fails_with '' as "$user" fusermount3 -u "$MNT"
        fails_with '' as "$user" "$KMSFS_TEST_DIR/bin/kmsfs" umount "$MNT"
    done
    fails_with "$EACCES" ls "$MNT"
    fails_with "$EACCES" cat "$MNT/t"
    equal "$(kmsfs --json status | jq -r --arg mnt "$MNT" '.[] | select(.Mountpoint == $mnt) | .State')" 'closed to you'
    as alice chmod 700 "$KMSFS_TEST_DIR/home/alice"
    # The store and the anchor are his alone.
    equal "$(stat -c '%U %a' "$STORE" "$KMSFS_TEST_DIR/home/alice/.local/state/kmsfs" | paste -sd,)" 'alice 700,alice 700'
}

@test "the host's anchor is in his state directory, wherever that is, and refuses an older store" {
    mount_his
    his kmsfs umount "$MNT"
    as alice cp -a "$STORE" "$HIS/older"
    mount_his
    as alice mkdir "$MNT/t"
    his kmsfs umount "$MNT"
    as alice sh -c "rm -rf $STORE; mv $HIS/older $STORE"
    refused 6 'anchor accept' mount_his
    # Where the variables are missing, as mount(8) and cron leave it, or sudo's are root's: his account's home.
    for environment in 'HOME' 'HOME=/root' "HOME=$KMSFS_TEST_DIR"; do
        unset_or_set=(-u HOME)
        [[ $environment == HOME ]] || unset_or_set=("$environment")
        refused 6 'anchor accept' his env "${unset_or_set[@]}" kmsfs mount "$STORE" "$MNT" --key-file "$KEYFILE" --log-file "$LOG"
    done
    # Another state directory knows nothing.
    his env XDG_STATE_HOME="$HIS/state" kmsfs mount "$STORE" "$MNT" --key-file "$KEYFILE" --log-file "$LOG" 3>&-
    his test -d "$HIS/state/kmsfs"
    his kmsfs umount "$MNT"
    his kmsfs anchor accept "$STORE" --key-file "$KEYFILE" --reason 'a backup was restored'
    mount_his
    expect_log "run 'kmsfs anchor accept'|has not seen the store before"
}

@test "umount, fusermount3 -u and SIGTERM end it in good order; a used mount and a busy store are told" {
    as alice mkdir "$HIS/other"
    for how in "kmsfs umount $MNT" "fusermount3 -u $MNT" 'kill PID'; do
        mount_his
        refused 5 "$MNT" his kmsfs mount "$STORE" "$HIS/other" --key-file "$KEYFILE" --log-file "$LOG"
        refused 5 'is mounted at' mount_his
        pid=$(daemon_pid)
        # shellcheck disable=SC2086
        his ${how/PID/$pid}
        daemon_gone 30
        not findmnt -n "$MNT"
    done
    mount_his
    as alice sh -c "exec sleep 60 <$MNT" 3>&- &
    holder=$!
    wait_until 20 pgrep -u alice -x sleep
    refused 5 'is in use' his kmsfs umount "$MNT"
    pkill -u alice -x sleep
    wait "$holder" || true
    his kmsfs umount "$MNT"
    lacks 'did not end in good order' <"$LOG"
    expect_log 'the store is in use by'
}

@test "the mount of a killed daemon is recognised, cleared by the next mount or by umount" {
    expect_unclean_stop
    mount_his
    as alice mkdir "$MNT/t"
    as alice item t/x kept
    kill_daemon
    fails_with "$ENOTCONN" as alice ls "$MNT"
    equal "$(his kmsfs --json status | jq -r --arg mnt "$MNT" '.[] | select(.Mountpoint == $mnt) | .State')" stale
    refused 7 'is gone' his kmsfs --at "$MNT" table list
    mount_his
    equal "$(as alice cat "$MNT/t/x")" kept
    equal "$(findmnt -no TARGET "$MNT" | wc -l)" 1
    kill_daemon
    his kmsfs umount "$MNT"
    not findmnt -n "$MNT"
    mount_his
    equal "$(as alice cat "$MNT/t/x")" kept
}

@test "without fusermount3, without the right to /dev/fuse, without user_allow_other: one line each, and no mount" {
    mkdir "$T/path"
    cp "$KMSFS_TEST_DIR/bin/kmsfs" "$T/path/"
    refused 8 fusermount3 as alice env PATH="$T/path" kmsfs mount "$STORE" "$MNT" --key-file "$KEYFILE" --log-file "$LOG"
    mount_his
    refused 8 fusermount3 as alice env PATH="$T/path" kmsfs umount "$MNT"
    # The mount of a killed daemon cannot be cleared then either.
    expect_unclean_stop
    kill_daemon
    refused 8 fusermount3 as alice env PATH="$T/path" kmsfs mount "$STORE" "$MNT" --key-file "$KEYFILE" --log-file "$LOG"
    his kmsfs umount "$MNT"

    umount /dev/fuse
    open_fuse 600
    refused 8 '/dev/fuse is closed to you' mount_his
    umount /dev/fuse
    open_fuse 666

    sed -i '/^user_allow_other/d' /etc/fuse.conf
    refused 1 user_allow_other mount_his -o allow_other
    echo 'mount_max = 0' >>/etc/fuse.conf
    refused 1 mount_max mount_his
    sed -i '/^mount_max/d' /etc/fuse.conf

    # A directory that is not his.
    mkdir "$T/roots"
    refused 1 "$T/roots" his kmsfs mount "$STORE" "$T/roots" --key-file "$KEYFILE" --log-file "$LOG"
    not findmnt -n "$MNT"
    expect_log 'cannot mount|fusermount3|/dev/fuse'
}

@test "with allow_other the policy decides for others too; what they make could not be theirs, so it is refused" {
    grep -q '^user_allow_other' /etc/fuse.conf || echo user_allow_other >>/etc/fuse.conf
    mount_his -o allow_other
    as alice chmod 755 "$KMSFS_TEST_DIR/home/alice" "$HIS"
    as alice mkdir "$MNT/t"
    as alice chmod 777 "$MNT/t"
    as alice item t/x 'from alice'
    as alice chmod 666 "$MNT/t/x"
    fails_with "$EACCES" as bob cat "$MNT/t/x"
    fails_with "$EACCES" cat "$MNT/t/x"
    fails_with "$EACCES" as bob touch "$MNT/t/bob's"
    his kmsfs --at "$MNT" key add-user t bob group:readers root
    equal "$(as bob cat "$MNT/t/x")" 'from alice'
    equal "$(cat "$MNT/t/x")" 'from alice'
    # By group, as with any mount: the daemon sees whose groups they are.
    equal "$(as erin cat "$MNT/t/x")" 'from alice'
    fails_with "$EACCES" as dora cat "$MNT/t/x"
    as bob sh -c "echo 'and bob' >>$MNT/t/x"
    equal "$(as alice cat "$MNT/t/x" | paste -sd' ')" 'from alice and bob'

    before=$(find "$STORE/tables" | wc -l)
    for user in bob root; do
        fails_with "$EPERM" as "$user" touch "$MNT/t/new"
        fails_with "$EPERM" as "$user" mkdir "$MNT/t/new"
        fails_with "$EPERM" as "$user" ln -s x "$MNT/t/new"
        fails_with "$EPERM" as "$user" mkfifo "$MNT/t/new"
    done
    equal "$(ls -A "$MNT/t")" x
    # Nothing of it stays in the store.
    equal "$(find "$STORE/tables" | wc -l)" "$before"
    fails_with "$EPERM" chown bob "$MNT/t/x"
    as alice chmod 700 "$KMSFS_TEST_DIR/home/alice"
    sed -i '/^user_allow_other/d' /etc/fuse.conf
}

@test "mount(8) mounts it for him from fstab" {
    cp /etc/fstab "$T/fstab" 2>/dev/null || : >"$T/fstab"
    mkdir "$T/sbin"
    cp "$KMSFS_TEST_DIR/bin/kmsfs" "$T/sbin/"
    mount --bind "$T/sbin" /usr/local/sbin
    echo "$STORE $MNT fuse.kmsfs user,noauto,key-file=$KEYFILE,log-file=$LOG 0 0" >>/etc/fstab
    as alice mount "$MNT" 3>&-
    as alice mkdir "$MNT/t"
    as alice item t/x 'by mount(8)'
    equal "$(as alice cat "$MNT/t/x")" 'by mount(8)'
    fails_with "$EACCES" ls "$MNT"
    # The same anchor as by hand.
    as alice fusermount3 -u "$MNT"
    daemon_gone 30
    mount_his
    equal "$(as alice cat "$MNT/t/x")" 'by mount(8)'
    cp "$T/fstab" /etc/fstab
    wait_until 30 umount /usr/local/sbin
}
