#!/usr/bin/env bats
# The rest of POSIX and of what Linux adds to it, by processes on a real mount: by tools where there are some, else by
# helpers/posix.c.

load common
# The teardown of all suites, after what this one adds.
eval "teardown_common() $(declare -f teardown | tail -n +2)"

setup() {
    new_paths
    start_helper
    start_store
    mount_store
    kmsfs table create a --user alice --user dora --owner alice --group finance --mode 770
    A=$MNT/a
}

start_helper() {
    [[ -x $KMSFS_TEST_DIR/bin/posix ]] || cc -O1 -Wall -Wextra -Werror -o "$KMSFS_TEST_DIR/bin/posix" "$ROOT/tests/shell/helpers/posix.c"
}

# One of the helper's scenarios, by alice in a folder of her own.
scenario() { # WORD
    as alice mkdir "$A/$1"
    as alice posix "$1" "$A/$1"
}

# --- one scenario each -------------------------------------------------------------------------------------------------

@test "fallocate: plain, KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE, on small and large items" {
    scenario space
    as alice sha256sum "$A/space/f" >"$T/sum"
    remount_store
    as alice sha256sum --quiet -c "$T/sum"
}

@test "SEEK_DATA and SEEK_HOLE" {
    scenario holes
    remount_store
    as alice cp --sparse=auto "$A/holes/f" "$A/copy"
    as alice cmp "$A/holes/f" "$A/copy"
}

@test "O_DIRECT beside cached and mapped reads and writes" {
    scenario direct
}

@test "O_APPEND from four processes: no record is lost or torn" {
    scenario append
    as alice sha256sum "$A/append/log" >"$T/sum"
    remount_store
    as alice sha256sum --quiet -c "$T/sum"
}

@test "vectors, RWF flags, O_SYNC, copies inside the kernel" {
    scenario vectors
}

@test "unlinked or replaced while open: everything but the name is still there" {
    scenario unlinked
}

@test "renameat2: NOREPLACE and EXCHANGE, of items and folders" {
    scenario renames
    remount_store
    equal "$(as alice cat "$A/renames/d/e" "$A/renames/d/one")" 12
    [[ -d $A/renames/two ]]
}

@test "a listing while names come and go" {
    scenario listings
}

@test "how open and openat2 may be asked" {
    scenario opens
}

@test "flock, fcntl and OFD locks between processes, and a deadlock that is found" {
    scenario locks
}

@test "inotify tells what another process does" {
    scenario watched
}

@test "shared mappings: one content for all, gone behind the end, kept over a remount" {
    scenario mapped
    remount_store
    equal "$(as alice head -c 31 "$A/mapped/map")" xxxxxxxxxxcxxxxxxxxxwxxxxxxxxxl
    equal "$(stat -c %s "$A/mapped/map")" 12288
}

@test "a unix socket in a table" {
    scenario sockets
}

@test "times to the nanosecond, before 1970 and after 2100, and times that no clock tells" {
    scenario times
    as alice touch -d '1969-12-31 23:59:59.123456789 UTC' "$A/times/f"
    remount_store
    equal "$(TZ=UTC stat -c %y "$A/times/f")" '1969-12-31 23:59:59.123456789 +0000'
}

# --- access lists and attributes -----------------------------------------------------------------------------------------

@test "access ACLs grant and deny, under their mask" {
    as alice sh -c "umask 077; echo text >$A/x"
    setfacl -m u:dora:x "$A" # dora has no other right to the table
    fails_with "$EACCES" as dora cat "$A/x"
    as alice setfacl -m u:dora:rw,g:readers:r "$A/x"
    equal "$(as dora cat "$A/x")" text
    as dora sh -c "echo more >>$A/x"
    fails_with "$EACCES" as dora rm -f "$A/x"
    fails_with "$EPERM" as dora setfacl -m u:dora:rwx "$A/x"
    # The group bits of the mode are the mask.
    as alice chmod g-w "$A/x"
    equal "$(as dora tail -n1 "$A/x")" more
    fails_with "$EACCES" as dora sh -c "echo again >>$A/x"
    # Who is named has what is said of him, whatever others have.
    as alice setfacl -m u:dora:-,o:r "$A/x"
    fails_with "$EACCES" as dora cat "$A/x"
    as alice getfacl -cp "$A/x" >"$T/acl"
    remount_store
    as alice getfacl -cp "$A/x" | diff "$T/acl" -
    fails_with "$EACCES" as dora cat "$A/x"
    as alice setfacl -b "$A/x"
    equal "$(as dora tail -n1 "$A/x")" more
    equal "$(stat -c %a "$A/x")" 604
}

# Of all that is in a folder, in the order of the names.
acls() { (cd "$1" && find . -print0 | sort -z | xargs -0 getfacl); }

@test "default ACLs go down to what is made below, however it is made" {
    as alice mkdir -p "$A/d/e"
    as alice setfacl -d -m u:dora:rwx,g:readers:rx,m:rwx "$A/d"
    as alice sh -c "umask 077; mkdir $A/d/new; echo x >$A/d/new/x; mkfifo $A/d/new/fifo; cp /bin/true $A/d/new/true"
    as alice getfacl -cp "$A/d/new" >"$T/acl"
    grep -qx 'default:user:dora:rwx' "$T/acl"
    grep -qx 'user:dora:rwx' "$T/acl"
    as alice getfacl -cp "$A/d/new/x" >"$T/acl"
    grep -qE '^user:dora:rwx\s+#effective:rw-$' "$T/acl"
    grep -qE '^group:readers:r-x\s+#effective:r--$' "$T/acl"
    not grep -q default: "$T/acl"
    # What was there before has none of it, and a file is none to have a default.
    as alice getfacl -cp "$A/d/e" | lacks dora
    fails_with 'Only directories can have default ACLs' as alice setfacl -d -m u:dora:r "$A/d/new/x"
    # Copied and brought back by the tools.
    as alice cp -a "$A/d" "$A/copy"
    diff <(acls "$A/d") <(acls "$A/copy")
    acls "$A/d" >"$T/all"
    as alice setfacl -R -b "$A/d"
    getfacl -R "$A/d" 2>/dev/null | lacks dora
    (cd "$A/d" && setfacl --restore="$T/all")
    remount_store
    diff <(acls "$A/d") <(acls "$A/copy")
}

@test "attributes: how they are made, how large they may be, who may have them" {
    as alice sh -c "echo x >$A/x; mkdir $A/d; ln -s x $A/link; mkfifo $A/fifo"
    as alice setfattr -n user.d -v folder "$A/d"
    equal "$(as alice getfattr --only-values -n user.d "$A/d")" folder
    as alice setfattr -n user.bytes -v 0x00ff0a00 "$A/x"
    equal "$(as alice getfattr -e hex -n user.bytes "$A/x" | sed -n 's/^user.bytes=//p')" 0x00ff0a00
    as alice setfattr -n "user.$(printf 'n%.0s' {1..170})" -v long "$A/x"
    fails_with 'Numerical result out of range' as alice setfattr -n "user.$(printf 'n%.0s' {1..171})" -v long "$A/x"
    as alice setfattr -n user.big -v "$(printf 'v%.0s' {1..2000})" "$A/x"
    equal "$(as alice getfattr --only-values -n user.big "$A/x" | wc -c)" 2000
    fails_with "$EPERM" as alice setfattr -h -n user.a -v b "$A/link"
    fails_with "$EPERM" as alice setfattr -n user.a -v b "$A/fifo"
    fails_with 'Operation not supported' setfattr -n trusted.a -v b "$A/x"
    fails_with "$EPERM" as alice setfattr -n user.kmsfs.why -v b "$A/x"
    # With the item they are moved, copied and gone.
    as alice mv "$A/x" "$A/d/y"
    as alice cp --preserve=xattr "$A/d/y" "$A/z"
    as alice rm "$A/d/y"
    remount_store
    equal "$(as alice getfattr "$A/z" 2>/dev/null | grep -c '^user\.')" 3
    equal "$(as alice getfattr --only-values -n user.big "$A/z" | wc -c)" 2000
}

# --- names -----------------------------------------------------------------------------------------------------------------

@test "hard links: nine names and no more, and a name that is gone leaves room for another" {
    as alice sh -c "echo shared >$A/1; for n in 2 3 4 5 6 7 8 9; do ln $A/1 $A/\$n; done"
    equal "$(stat -c %h "$A/5")" 9
    fails_with EMLINK as alice probe link "$A/1" "$A/10"
    as alice rm "$A/5"
    as alice ln "$A/9" "$A/10"
    fails_with EMLINK as alice probe link "$A/1" "$A/11"
    # A rename to another name needs no room, and one onto a name of the same item does nothing.
    as alice mv "$A/9" "$A/nine"
    as alice probe rename "$A/1" "$A/2"
    equal "$(stat -c %h "$A/1")" 9
    as alice sh -c "echo other >$A/other; mv $A/other $A/2"
    equal "$(stat -c %h "$A/1")" 8
    remount_store
    as alice ln "$A/1" "$A/12"
    fails_with EMLINK as alice probe link "$A/1" "$A/13"
    for name in 1 3 4 6 7 8 10 12 nine; do equal "$(as alice cat "$A/$name")" shared; done
    equal "$(as alice cat "$A/2")" other
}

@test "trees of hard links that are removed after a remount, again and again" {
    as alice mkdir "$A/tree"
    as alice sh -c "echo shared >$A/tree/x; echo also >$A/tree/y"
    for round in 1 2 3 4 5 6 7 8 9 10 11 12; do
        as alice cp -al "$A/tree" "$A/tree-$round"
        remount_store
        as alice rm -r "$A/tree-$round"
        ((round % 2)) || as alice sh -c "echo new >$A/new; ln -f $A/tree/x $A/replaced"
        remount_store
        ((round % 2)) || as alice mv "$A/new" "$A/replaced"
    done
    equal "$(stat -c %h "$A/tree/x")" 1
    equal "$(as alice cat "$A/tree/x" "$A/tree/y" | paste -sd' ')" 'shared also'
}

@test "what is being executed is not cut, whichever way it is asked" {
    as alice cp /bin/sleep "$A/sleep"
    as alice chmod 700 "$A/sleep"
    background as alice "$A/sleep" 300
    sleeper=${BACKGROUND[0]}
    wait_until 20 pgrep -f "^$A/sleep 300"
    for flags in w + wt; do fails_with ETXTBSY as alice probe open "$flags" "$A/sleep"; done
    fails_with ETXTBSY as alice posix cut "$A/sleep"
    fails_with 'Text file busy' as alice truncate -s 0 "$A/sleep"
    cmp /bin/sleep <(as alice cat "$A/sleep")
    kill -0 "$sleeper"
    pkill -f "^$A/sleep 300"
    await || true
    BACKGROUND=()
    wait_until 20 as alice posix cut "$A/sleep"
    equal "$(stat -c %s "$A/sleep")" 0
}

# --- space -----------------------------------------------------------------------------------------------------------------

@test "sparse items: written here and there, they take the space of what was written" {
    as alice truncate -s 1T "$A/x"
    as alice sh -c "printf begin | dd of=$A/x conv=notrunc status=none; printf end | dd of=$A/x bs=1 seek=$((1 << 30)) conv=notrunc status=none"
    equal "$(stat -c %s "$A/x")" $((1 << 40))
    (($(du -k "$A/x" | cut -f1) < 16384))
    equal "$(as alice dd if="$A/x" bs=1 skip=$((1 << 30)) count=4 status=none | tr '\0' .)" end.
    remount_store
    equal "$(as alice head -c 6 "$A/x" | tr '\0' .)" begin.
    equal "$(as alice dd if="$A/x" bs=1 skip=$(((1 << 30) - 1)) count=4 status=none | tr '\0' .)" .end
    equal "$(as alice tail -c 3 "$A/x" | tr '\0' .)" ...
    fails_with 'File too large' as alice dd if=/dev/zero of="$A/y" bs=1 count=1 seek=$((1 << 35)) status=none
}

@test "statfs tells what the disk below has" {
    equal "$(stat -f -c '%S %b %c %l' "$A")" "$(stat -f -c '%S %b %c 255' "$STORE")"
    (($(stat -f -c %a "$A") > 0))
    equal "$(stat -f -c %l "$A")" 255
}

# A store on a disk of its own: a file system in a file. Fails where the kernel does not mount such a one.
small_disk() { # MIB TYPE [MKFS-OPTION]...
    local mib=$1 type=$2
    shift 2
    DISK=$T/disk
    mkdir "$DISK"
    truncate -s "${mib}M" "$T/image"
    case $type in
        ext4) mkfs.ext4 -q -m 0 "$@" "$T/image" ;;
        btrfs) mkfs.btrfs -q "$@" "$T/image" >/dev/null ;;
    esac
    DEVICE=$(losetup --find --show "$T/image")
    mount -t "$type" "$DEVICE" "$DISK" || return 1
    [[ $type != btrfs ]] || btrfs quota enable "$DISK"
    umount_store
    STORE=$DISK/store
    start_store
    mount_store
    kmsfs table create b --user alice --user dora --owner alice --mode 777
    B=$MNT/b
}

teardown() {
    [[ -z ${DEVICE-} ]] || {
        mountpoint -q "$MNT" && { umount_when_idle || abort_mount; }
        daemon_gone 30 || kill_daemon
        umount "$DISK" 2>/dev/null || umount -l "$DISK" 2>/dev/null || true
        losetup -d "$DEVICE"
    }
    teardown_common
}

@test "a full disk: ENOSPC, and not a byte of what was there is lost" {
    small_disk 96 ext4
    as alice sh -c "head -c 12000000 /dev/urandom >$B/precious; echo small >$B/small"
    as alice sync "$B/precious" "$B/small"
    as alice sha256sum "$B/precious" "$B/small" >"$T/sums"
    fails_with 'No space left on device' as alice sh -c "cat /dev/zero >$B/filler"
    size=$(stat -c %s "$B/filler")
    ((size > 20000000))
    as alice sha256sum --quiet -c "$T/sums"
    # What was written before the disk was full is there.
    equal "$(as alice sh -c "tr -d '\\0' <$B/filler | wc -c")" 0
    # Nothing new fits; what is there is read, listed, removed.
    fails_with 'No space left on device' as alice sh -c "head -c 3000000 /dev/urandom >$B/more"
    as alice sha256sum --quiet -c "$T/sums"
    # In the middle of a write over what was there: each part is as before or as written, the rest as before.
    as alice cp "$B/precious" "$KMSFS_TEST_DIR/home/alice/before"
    read -r written how < <(as alice posix overwrite "$B/precious" 100001 9000000 Z)
    [[ $how == ENOSPC || $how == whole ]]
    check_overwritten
    as alice rm "$B/filler"
    remount_store
    check_overwritten
    as alice sh -c "head -c 3000000 /dev/urandom >$B/more"
    equal "$(as alice cat "$B/small")" small
}

# The item is what it was, but for `written` bytes that became Z; behind them at most the write that failed may have.
check_overwritten() {
    local before=$KMSFS_TEST_DIR/home/alice/before
    equal "$(stat -c %s "$B/precious")" 12000000
    as alice cmp -n 100001 "$before" "$B/precious"
    equal "$(as alice tail -c +100002 "$B/precious" | head -c "$written" | tr -d Z | wc -c)" 0
    as alice cmp -i $((100001 + written + 65536)) "$before" "$B/precious"
}

@test "a full disk while folders, names and attributes are made: each is whole or not there" {
    small_disk 64 ext4
    as alice sh -c "echo kept >$B/kept; setfattr -n user.a -v kept $B/kept; ln $B/kept $B/link"
    as alice sync "$B/kept"
    as alice sh -c "cat /dev/zero >$B/filler" 2>/dev/null || true
    as alice bash -c 'for ((i = 0; i < 3000; i++)); do mkdir "$1/d$i" && echo "$i" >"$1/d$i/x" && mv "$1/d$i/x" "$1/d$i/y"; done; true' m "$B" 2>/dev/null
    as alice bash -c 'for ((i = 0; i < 300; i++)); do echo "$i" >>"$1/kept"; done; true' m "$B" 2>/dev/null || true
    equal "$(as alice head -n1 "$B/link")" kept
    as alice rm "$B/filler"
    remount_store
    equal "$(as alice head -n1 "$B/link")" kept
    equal "$(as alice getfattr --only-values -n user.a "$B/kept")" kept
    for folder in "$B"/d*; do
        content=$(as alice sh -c "cat $folder/* 2>/dev/null" || true)
        [[ -z $content || $content == "${folder##*/d}" ]]
    done
    as alice sh -c "rm -r $B/d*; echo more >$B/new"
}

@test "a quota below: EDQUOT, and not a byte of what was there is lost" {
    small_disk 256 btrfs
    # Reading from a customer table needs room in the trail; an owned one keeps none.
    kmsfs table create c --encryption owned --owner alice --mode 700
    for table in "$B" "$MNT/c"; do
        as alice sh -c "head -c 4000000 /dev/urandom >$table/precious"
        as alice sync "$table/precious"
    done
    as alice sha256sum "$B/precious" >"$T/sum"
    sync -f "$DISK"
    btrfs qgroup limit 64M "$DISK"
    fails_with 'Disk quota exceeded' as alice sh -c "cat /dev/zero >$B/filler"
    (($(stat -c %s "$B/filler") > 10000000))
    fails_with 'Disk quota exceeded' as alice sh -c "head -c 3000000 /dev/urandom >$MNT/c/more"
    read -r written how < <(as alice posix overwrite "$MNT/c/precious" 0 4000000 Z)
    [[ $how == EDQUOT || $how == EIO || $how == whole ]]
    btrfs qgroup limit none "$DISK"
    # A flush that the disk refused ends all changes until the next mount, which puts in place what is in the journal.
    expect_log 'no space is left for the audit trail|takes no more changes|not closed in good order|checkpoint.*failed'
    expect_unclean_stop
    remount_store
    equal "$(as alice cat "$MNT/c/precious" | wc -c)" 4000000
    as alice sha256sum "$B/precious" | diff "$T/sum" -
    as alice rm "$B/filler"
    as alice sh -c "head -c 3000000 /dev/urandom >$B/more"
}

@test "one user's quota below: EDQUOT for him, and others go on" {
    small_disk 96 ext4 -O quota -E quotatype=usrquota || skip "this kernel has no quotas of users on ext4"
    as alice sh -c "head -c 1000000 /dev/urandom >$B/precious"
    as alice sync "$B/precious"
    as alice sha256sum "$B/precious" >"$T/sum"
    posix quota "$DEVICE" "$(id -u alice)" 6000
    fails_with 'Disk quota exceeded' as alice sh -c "cat /dev/zero >$B/filler"
    (($(stat -c %s "$B/filler") > 3000000))
    as alice sha256sum --quiet -c "$T/sum"
    as dora sh -c "head -c 9000000 /dev/zero >$B/dora"
    fails_with 'Disk quota exceeded' as alice sh -c "head -c 100000 /dev/zero >>$B/filler"
    as alice rm "$B/filler"
    as alice sh -c "head -c 1000000 /dev/zero >$B/again"
    remount_store
    as alice sha256sum --quiet -c "$T/sum"
    equal "$(stat -c %s "$B/dora")" 9000000
}
