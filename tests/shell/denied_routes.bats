#!/usr/bin/env bats
# Who may not decrypt comes to an item's contents on no route. Each route is shown to work for alice first: a route that
# works for nobody would prove nothing.

load common

SECRET='the secret of order 1001'

setup() {
    new_paths
    start_store
    mount_store
    orders
    as alice item orders/secret "$SECRET"
    OUT=$T/out
    install -d -m 1777 "$OUT"
}

# The command works for alice, its output holding the secret; bob and root get EACCES and no part of it.
alice_only() { # COMMAND...
    local output user
    output=$(as alice "$@")
    [[ $output == *"$SECRET"* ]] || { echo "alice: $output"; return 1; }
    for user in bob root; do
        fails_with EACCES as "$user" "$@" || fails_with "$EACCES" as "$user" "$@"
        output=$(as "$user" "$@" 2>&1 || true)
        [[ $output != *"$SECRET"* ]] || { echo "$user: $output"; return 1; }
    done
}

@test "cat, head, dd, grep, tail, od, awk" {
    item=$MNT/orders/secret
    alice_only cat "$item"
    alice_only head -c 100 "$item"
    alice_only dd if="$item" status=none
    alice_only grep secret "$item"
    alice_only tail -n 1 "$item"
    alice_only sed p "$item"
    alice_only awk 1 "$item"
}

@test "cp, and cp by every means of copying" {
    as alice cp "$MNT/orders/secret" "$OUT/alice"
    equal "$(cat "$OUT/alice")" "$SECRET"
    for user in bob root; do
        for how in auto always never; do
            fails_with "$EACCES" as "$user" cp --reflink="$how" "$MNT/orders/secret" "$OUT/$user.$how"
            [[ ! -s $OUT/$user.$how ]]
        done
        fails_with "$EACCES" as "$user" cp -a "$MNT/orders" "$OUT/$user.tree"
        not grep -rq "$SECRET" "$OUT/$user.tree"
        fails_with "$EACCES" as "$user" tar -cf "$OUT/$user.tar" -C "$MNT" orders
        not grep -q "$SECRET" "$OUT/$user.tar"
    done
}

@test "mmap, shared and private" {
    alice_only probe mmap shared "$MNT/orders/secret"
    alice_only probe mmap private "$MNT/orders/secret"
}

@test "copy_file_range, sendfile and splice" {
    for how in copy-range sendfile splice; do
        # Inside the mount: the kernel copies no range from one kind of file system to another.
        as alice probe "$how" "$MNT/orders/secret" "$MNT/orders/$how"
        equal "$(as alice cat "$MNT/orders/$how")" "$SECRET"
        for user in bob root; do
            fails_with EACCES as "$user" probe "$how" "$MNT/orders/secret" "$OUT/$user.$how"
            [[ ! -s $OUT/$user.$how ]]
        done
    done
}

@test "exec, by path and through an interpreter" {
    as alice sh -c "cp /bin/echo $MNT/orders/program; printf '#!/bin/sh\necho %s\n' '$SECRET' >$MNT/orders/script; chmod 770 $MNT/orders/program $MNT/orders/script"
    as alice probe exec "$MNT/orders/program"
    equal "$(as alice "$MNT/orders/script")" "$SECRET"
    for user in bob root; do
        for item in program script; do
            fails_with EACCES as "$user" probe exec "$MNT/orders/$item"
        done
        fails_with "$EACCES" as "$user" sh "$MNT/orders/script"
        # The loader opens what it is told to.
        loader=$(find /lib64/ld-linux-x86-64.so.2 /lib/ld-linux-aarch64.so.1 2>/dev/null | head -n1)
        [[ -z $loader ]] || fails_with "$EACCES" as "$user" "$loader" "$MNT/orders/program"
    done
}

@test "a symlink from outside, and the target of one inside" {
    ln -s "$MNT/orders/secret" "$OUT/link"
    alice_only cat "$OUT/link"
    as alice ln -s "/where/$SECRET" "$MNT/orders/link"
    equal "$(as alice readlink "$MNT/orders/link")" "/where/$SECRET"
    for user in bob root; do
        [[ $(as "$user" readlink -v "$MNT/orders/link" 2>&1) == *"$EACCES"* ]]
        [[ $(as "$user" ls -l "$MNT/orders" 2>&1) != *"$SECRET"* ]]
    done
}

@test "a hard link, or a name of one's own" {
    for user in bob root; do
        fails_with EACCES as "$user" probe link "$MNT/orders/secret" "$MNT/orders/$user.link"
        fails_with EACCES as "$user" probe rename "$MNT/orders/secret" "$MNT/orders/$user.name"
    done
    as alice ln "$MNT/orders/secret" "$MNT/orders/second"
    alice_only cat "$MNT/orders/second"
}

@test "a descriptor of another process, through /proc" {
    hold alice r "$MNT/orders/secret"
    equal "$(ask read)" "$SECRET"
    pid=$(ask pid)
    link=$(find "/proc/$pid/fd" -lname "$MNT/orders/secret")
    [[ -n $link ]]
    for user in bob root; do
        fails_with "$EACCES" as "$user" cat "$link"
    done
    equal "$(ask read)" "$SECRET"
}

@test "a descriptor that is only a path, opened again" {
    as alice probe open rp "$MNT/orders/secret"
    for user in bob root; do
        for flags in rp wp +p; do
            fails_with EACCES as "$user" probe open "$flags" "$MNT/orders/secret"
        done
    done
}

@test "open_by_handle_at" {
    probe handle-save "$MNT/orders/secret" "$OUT/handle"
    fails_with EACCES probe handle-open "$MNT" "$OUT/handle"
    fails_with EPERM as bob probe handle-open "$MNT" "$OUT/handle"
    probe handle-save "$MNT/orders" "$OUT/folder"
}

@test "a second mount namespace, a bind mount, a user namespace" {
    for user in bob root; do
        fails_with "$EACCES" unshare --mount setpriv --reuid="$user" --regid="$user" --init-groups cat "$MNT/orders/secret"
    done
    mkdir "$T/bind"
    mount --bind "$MNT/orders" "$T/bind"
    alice_only cat "$T/bind/secret"
    umount "$T/bind"
    fails_with "$EACCES" unshare --user --map-root-user cat "$MNT/orders/secret"
    # bob's namespace may be forbidden to him; if he gets one, it opens nothing.
    fails_with "" as bob unshare --user --map-root-user cat "$MNT/orders/secret"
    { as bob unshare --user --map-root-user cat "$MNT/orders/secret" 2>&1 || true; } | lacks "$SECRET"
}

@test "an overlay that root puts on top" {
    mkdir "$T/upper" "$T/work" "$T/overlay"
    mount -t overlay overlay -o "lowerdir=$MNT/orders,upperdir=$T/upper,workdir=$T/work" "$T/overlay" ||
        skip "this kernel has no overlay here"
    for user in bob root; do
        fails_with "$EACCES" as "$user" cat "$T/overlay/secret"
    done
    umount "$T/overlay"
}

@test "a set-uid helper has its owner's right, root's included: none" {
    for owner in root bob; do
        install -o "$owner" -m 4755 "$KMSFS_TEST_DIR/bin/probe" "$T/as-$owner"
        for caller in alice bob root; do
            fails_with EACCES as "$caller" "$T/as-$owner" cat "$MNT/orders/secret"
        done
    done
    # And alice's own helper has alice's right: that is what she made it for.
    install -o alice -m 4755 "$KMSFS_TEST_DIR/bin/probe" "$T/as-alice"
    equal "$(as bob "$T/as-alice" cat "$MNT/orders/secret")" "$SECRET"
}

@test "a set-uid bit on an item means nothing" {
    as alice sh -c "cp $KMSFS_TEST_DIR/bin/probe $MNT/orders/tool; chmod 4777 $MNT/orders/tool"
    findmnt -no OPTIONS "$MNT" | grep -q nosuid
    findmnt -no OPTIONS "$MNT" | grep -q nodev
    kmsfs key add-user orders bob
    chmod 600 "$MNT/orders/secret"
    fails_with "$EACCES" as bob "$MNT/orders/tool" cat "$MNT/orders/secret" ||
        fails_with EACCES as bob "$MNT/orders/tool" cat "$MNT/orders/secret"
}

@test "a descriptor that alice hands on carries her right, and loses it when she does" {
    hold_passed alice "$MNT/orders/secret"
    equal "$(ask read)" "$SECRET"
    kmsfs key remove-user orders alice
    [[ $(ask read) =~ ^(EACCES|ESTALE)$ ]]
}

@test "writing, truncating, renaming and removing without the key" {
    for user in bob root; do
        for flags in w + wt wa; do
            fails_with EACCES as "$user" probe open "$flags" "$MNT/orders/secret"
        done
        fails_with "$EACCES" as "$user" truncate -s 0 "$MNT/orders/secret"
        fails_with "$EACCES" as "$user" rm -f "$MNT/orders/secret"
        fails_with "$EACCES" as "$user" mv -T "$MNT/orders/1001.json" "$MNT/orders/secret"
        fails_with "$EACCES" as "$user" touch "$MNT/orders/new"
        fails_with "$EACCES" as "$user" mkdir "$MNT/orders/new"
        fails_with "$EACCES" as "$user" ln -s x "$MNT/orders/new"
        fails_with "$EACCES" as "$user" mkfifo "$MNT/orders/new"
    done
    equal "$(as alice cat "$MNT/orders/secret")" "$SECRET"
    equal "$(as alice ls "$MNT/orders" | sort | tr '\n' ' ')" '1001.json secret '
}

@test "values of attributes" {
    as alice setfattr -n user.note -v "$SECRET" "$MNT/orders/secret"
    alice_only getfattr --only-values -n user.note "$MNT/orders/secret"
    for user in bob root; do
        fails_with "$EACCES" as "$user" setfattr -n user.note -v x "$MNT/orders/secret"
        fails_with "$EACCES" as "$user" setfattr -x user.note "$MNT/orders/secret"
    done
}

@test "what alice has read into the page cache is not there for others" {
    as alice cat "$MNT/orders/secret" "$MNT/orders/secret" >/dev/null
    hold alice r "$MNT/orders/secret"
    ask map >/dev/null
    for user in bob root; do
        fails_with "$EACCES" as "$user" cat "$MNT/orders/secret"
        fails_with EACCES as "$user" probe mmap shared "$MNT/orders/secret"
    done
}

@test "the control tree, the log and the errors tell nothing" {
    as alice cat "$MNT/orders/secret" >/dev/null
    as bob cat "$MNT/orders/secret" 2>"$OUT/error" || true
    not grep -q "$SECRET" "$OUT/error" "$LOG"
    { find "$MNT/.kms" -type f -exec cat {} + 2>/dev/null || true; } | lacks "$SECRET"
}

@test "root cannot look into the daemon's memory through a core dump, and others cannot trace it" {
    pid=$(daemon_pid)
    equal "$(awk '/Max core file size/ { print $5 }' "/proc/$pid/limits")" 0
    fails_with "" as bob head -c 1 "/proc/$pid/mem"
    fails_with "" as bob ls "/proc/$pid/fd"
}

@test "a right under one prefix does not spread by rename, exchange, link or a folder's move" {
    policy_with orders '.Statement += [
        {"Sid": "Writes all", "Effect": "Allow", "Principal": {"Unix": ["bob"]},
         "Action": ["kms:Encrypt", "kms:GenerateDataKey"], "Resource": "*"},
        {"Sid": "Reads public", "Effect": "Allow", "Principal": {"Unix": ["bob"]}, "Action": "kms:Decrypt", "Resource": "*",
         "Condition": {"StringLike": {"kms:EncryptionContext:kmsfs:item": "public/*"}}}]' >"$T/p.json"
    kmsfs policy put orders "$T/p.json"
    as alice mkdir -m 2770 "$MNT/orders/public" "$MNT/orders/private" "$MNT/orders/private/deep"
    as alice item orders/private/x "$SECRET"
    as alice item orders/private/deep/y "$SECRET"
    as alice item orders/public/z open
    equal "$(as bob cat "$MNT/orders/public/z")" open

    fails_with EACCES as bob probe rename "$MNT/orders/private/x" "$MNT/orders/public/x"
    fails_with EACCES as bob probe exchange "$MNT/orders/private/x" "$MNT/orders/public/z"
    fails_with EACCES as bob probe link "$MNT/orders/private/x" "$MNT/orders/public/x"
    # Folders do not move in one step, for nobody: mv copies item by item, each under a decision of its own.
    for user in alice bob; do
        fails_with E as "$user" probe rename "$MNT/orders/private" "$MNT/orders/public/private"
        fails_with E as "$user" probe rename "$MNT/orders/private/deep" "$MNT/orders/public/deep"
        fails_with E as "$user" probe exchange "$MNT/orders/private/deep" "$MNT/orders/public"
    done
    fails_with EXDEV as alice probe rename "$MNT/orders/private/deep" "$MNT/orders/public/deep"
    fails_with "$EACCES" as bob mv "$MNT/orders/private/deep" "$MNT/orders/public/deep"
    # What does not launder is allowed: within what he may read.
    as bob mv "$MNT/orders/public/z" "$MNT/orders/public/zz"
    equal "$(as bob cat "$MNT/orders/public/zz")" open

    { as bob find "$MNT/orders" -type f -exec cat {} + 2>/dev/null || true; } | lacks "$SECRET"
    equal "$(as alice cat "$MNT/orders/private/x")" "$SECRET"
}
