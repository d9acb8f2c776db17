#!/usr/bin/env bats
# The attacks of docs/threat-model.md, section 3, on the files of a store, by someone who can write them and has no
# root key. Each works on a copy of one store, so that what one does to it no other sees. Nothing here knows more of a
# store than docs/format.md says: items are found by the lengths of their backing files, which are unlike on purpose.
#
# Needs bats, and run through tests/shell/namespace.sh: attr, xxd, util-linux.

load common
load attacks

# Bytes of plaintext, and of the backing file that format.md, section 6.4 gives them.
readonly SMALL=1000 SMALL_FILE=1544 # inline
readonly PAIR=1100 PAIR_FILE=1644   # inline: two in a folder, one in another folder, one in another table
readonly BIG=500000 BIG_FILE=508192 # paged: 123 blocks, so that there are two pages of entries
readonly TWIN=20000 TWIN_FILE=24096 # paged: two of them
readonly TINY_FILE=584              # inline, 40 bytes: one for each byte that is mount_store

# One store for all tests, closed in good order, its anchor and its key file beside it.
setup_file() {
    common_setup_file
    new_paths
    start_store
    mount_store
    local table
    for table in orders others; do
        kmsfs table create "$table" --user alice --owner alice --group finance --mode 2770
    done
    as alice fill_tables
    (cd "$MNT" && as alice find . -type f -exec sha256sum {} +) >"$T/sums"
    umount_store
    mv "$T" "$BATS_FILE_TMPDIR/pristine"
}

fill_tables() {
    set -eu
    umask 007
    cd "$MNT"
    random() { head -c "$2" /dev/urandom >"$1"; }
    random orders/small 1000
    random orders/big 500000
    random orders/pair1 1100
    random orders/pair2 1100
    random orders/twin1 20000
    random orders/twin2 20000
    mkdir orders/sub orders/sub2 orders/folders orders/tiny
    random orders/sub/pair3 1100
    random others/pair4 1100
    random others/well 77
    echo inside >orders/sub2/note
    echo long >"orders/$(printf 'n%.0s' {1..200})"
    local i
    for i in {0..583}; do printf '%040d' "$i" >"orders/tiny/$i"; done
    for i in {0..159}; do
        mkdir "orders/folders/$i"
        echo x >"orders/folders/$i/x"
    done
    setfattr -n user.note -v 'a note' orders/small
}

@test "nothing is wrong with the store that is attacked" {
    mount_store
    (cd "$MNT" && as alice sha256sum --check --quiet <"$SUMS")
    kmsfs audit verify
}

# --- items ---

@test "each byte of a small item: header, entry, ciphertext" {
    local i
    find_backing $TINY_FILE $TINY_FILE
    for i in "${!FOUND[@]}"; do flip "${FOUND[i]}" "$i" $((i % 8)); done
    mount_store
    # shellcheck disable=SC2046
    assert_noticed $(seq -f 'orders/tiny/%g' 0 583)
    assert_rest_served others/well orders/small orders/big
    assert_event
}

@test "whom the policy denies hears of no damage" {
    flip "$(backing $SMALL_FILE)" 900
    mount_store
    fails_with "$EACCES" as bob cat "$MNT/orders/small"
    fails_with "$EACCES" cat "$MNT/orders/small"
}

@test "a damaged item can be removed, and its name used again" {
    flip "$(backing $SMALL_FILE)" 120
    mount_store
    assert_noticed orders/small
    as alice rm -f "$MNT/orders/small"
    equal "$(outcome orders/small)" "$ENOENT"
    as alice item orders/small new
    equal "$(as alice cat "$MNT/orders/small")" new
}

@test "a block of a large item: its data, its entry in either page of entries" {
    local offset
    # Block 5: entry and data. Block 115, behind the second page of entries at page 113: entry and data.
    for offset in $((512 + 32 * 5 + 1)) $((4096 * 6 + 17)) $((4096 * 113 + 32 * 3 + 20)) $((4096 * 117 + 4095)); do
        pristine
        flip "$(backing $BIG_FILE)" "$offset" 7
        mount_store
        assert_noticed orders/big
        # Another block of it is read.
        as alice dd if="$MNT/orders/big" of=/dev/null bs=4096 count=1 skip=60 iflag=direct status=none
        assert_rest_served orders/small
        assert_event
    done
}

@test "two blocks of an item change places, with and without their entries" {
    local file
    file=$(backing $BIG_FILE)
    exchange "$file" $((4096 * 2)) "$file" $((4096 * 3)) 4096
    mount_store
    assert_noticed orders/big
    umount_store
    exchange "$file" $((512 + 32)) "$file" $((512 + 64)) 32
    mount_store
    assert_noticed orders/big
    assert_event
}

@test "header, entries, blocks, all but the header change places between two items" {
    local place
    for place in '0 512' '512 32' '4096 4096' '512 23584'; do
        pristine
        find_backing $TWIN_FILE 2
        exchange "${FOUND[0]}" "${place% *}" "${FOUND[1]}" "${place% *}" "${place#* }"
        mount_store
        assert_noticed orders/twin1 orders/twin2
        assert_rest_served orders/big
        umount_store
    done
}

@test "two items of a folder change names" {
    mapfile -t FOUND < <(find "$(folder_of $PAIR_FILE)" -maxdepth 1 -type f -size ${PAIR_FILE}c)
    equal "${#FOUND[@]}" 2
    exchange_files "${FOUND[0]}" "${FOUND[1]}"
    mount_store
    assert_noticed orders/pair1 orders/pair2
    assert_rest_served
    assert_event
}

@test "an item takes the place of others: in its folder, in another, in another table" {
    local file
    find_backing $PAIR_FILE 4
    cp "${FOUND[0]}" "$T/one"
    for file in "${FOUND[@]:1}"; do cat "$T/one" >"$file"; done
    mount_store
    as alice outcomes orders/pair1 orders/pair2 orders/sub/pair3 others/pair4 >"$T/outcomes"
    equal "$(grep -c '^ok$' "$T/outcomes")" 1
    equal "$(grep -cxE "$EBADMSG|$EUCLEAN" "$T/outcomes")" 3
    assert_rest_served
}

@test "an item of another store under the same names" {
    local store=$STORE tables=$TABLES anchor=$KMSFS_ANCHOR
    STORE=$T/foreign KMSFS_ANCHOR=$T/foreign-anchor
    mkdir "$KMSFS_ANCHOR"
    start_store
    mount_store
    kmsfs table create orders --user alice --owner alice
    as alice dd if=/dev/zero of="$MNT/orders/small" bs=$SMALL count=1 status=none
    umount_store
    TABLES=$STORE/tables
    find_backing $SMALL_FILE 1
    STORE=$store TABLES=$tables KMSFS_ANCHOR=$anchor
    cat "${FOUND[0]}" >"$(backing $SMALL_FILE)"
    mount_store
    assert_noticed orders/small
    assert_rest_served
}

@test "a small item is cut to every shorter length" {
    local i
    find_backing $TINY_FILE $TINY_FILE
    for i in "${!FOUND[@]}"; do truncate -s "$i" "${FOUND[i]}"; done
    mount_store
    # shellcheck disable=SC2046
    assert_noticed $(seq -f 'orders/tiny/%g' 0 583)
    # None is taken for what a crash left: the store was closed in good order.
    equal "$(as alice names orders/tiny | wc -l)" $TINY_FILE
    assert_rest_served
}

@test "items are extended, by bytes and by pages" {
    local by
    for by in 1 15 16 512 4096 8192; do
        pristine
        truncate -s "+$by" "$(backing $SMALL_FILE)"
        truncate -s "+$by" "$(backing $BIG_FILE)"
        mount_store
        assert_noticed orders/small orders/big
        umount_store
    done
}

@test "a large item is cut: in its last block, at a block, in a page of entries, to a header" {
    local to
    for to in $((BIG_FILE - 1)) $((4096 * 124)) $((4096 * 115)) $((4096 * 113 + 32)) $((4096 * 50)) 4096 4095 512 0; do
        pristine
        truncate -s "$to" "$(backing $BIG_FILE)"
        mount_store
        assert_noticed orders/big
        assert_rest_served
        umount_store
    done
}

@test "a block becomes zeros, then its entry too; blocks become a hole" {
    local file
    file=$(backing $BIG_FILE)
    dd if=/dev/zero of="$file" bs=4096 seek=10 count=1 conv=notrunc status=none
    mount_store
    assert_noticed orders/big
    umount_store
    # Page 10 is block 9.
    dd if=/dev/zero of="$file" bs=32 seek=$((16 + 9)) count=1 conv=notrunc status=none
    mount_store
    assert_noticed orders/big
    umount_store
    pristine
    fallocate --punch-hole --offset 40960 --length 40960 "$(backing $BIG_FILE)"
    mount_store
    assert_noticed orders/big
}

@test "a symlink, a FIFO and a folder stand in for an item's file: not followed, not waited for" {
    local file make
    file=$(backing $SMALL_FILE)
    for make in 'ln -s /etc/hostname' mkfifo mkdir; do
        rm -rf "$file"
        $make "$file"
        mount_store
        outcome orders/small >"$T/outcome"
        if grep -qx ok "$T/outcome"; then return 1; fi
        assert_rest_served
        umount_store
    done
}

@test "an item of another version of the format is not read" {
    printf '\2' | dd of="$(backing $SMALL_FILE)" bs=1 seek=8 conv=notrunc status=none
    mount_store
    equal "$(outcome orders/small)" "$EUCLEAN"
    assert_rest_served
}

@test "an extended attribute's value is changed" {
    local file name value
    file=$(backing $SMALL_FILE)
    name=$(getfattr --absolute-names -m '^user\.k\.' "$file" | grep '^user')
    value=$(getfattr --absolute-names --only-values -n "$name" "$file" | xxd -p | tr -d '\n')
    setfattr -n "$name" -v "0x${value:0:-2}$(printf %02x $((0x${value: -2} ^ 1)))" "$file"
    mount_store
    fails_with "$EBADMSG" as alice getfattr --only-values -n user.note "$MNT/orders/small"
    fails_with "$EACCES" as bob getfattr --only-values -n user.note "$MNT/orders/small"
    assert_rest_served orders/small
}

# --- names and folders ---

@test "an item is copied to a name of the attacker's making" {
    local file
    file=$(backing $SMALL_FILE)
    cp -a "$file" "${file%/*}/AAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    mount_store
    equal "$(as alice names orders | wc -l)" 11
    assert_rest_served orders/small
    assert_event
}

@test "a name is changed: it is left out, the rest of the folder is listed" {
    local file name first=A
    file=$(backing $SMALL_FILE)
    name=${file##*/}
    [[ $name != A* ]] || first=B
    mv "$file" "${file%/*}/$first${name:1}"
    mount_store
    as alice names orders >"$T/names"
    equal "$(wc -l <"$T/names")" 10
    fails_with '' grep -x small "$T/names"
    equal "$(outcome orders/small)" "$ENOENT"
    assert_rest_served orders/big
    assert_event
}

@test "a long name's sidecar is changed" {
    flip "$(find "$TABLES" -name '.n.*')" 20
    mount_store
    as alice names orders >"$T/names"
    equal "$(wc -l <"$T/names")" 10
    fails_with '' grep nnn "$T/names"
    assert_rest_served orders/small
    assert_event
}

@test "each byte of a folder's own file" {
    local i
    mapfile -t FOUND < <(find "$TABLES" -mindepth 4 -name .d | sort)
    equal "${#FOUND[@]}" 160
    for i in "${!FOUND[@]}"; do flip "${FOUND[i]}" "$i" $((i % 8)); done
    mount_store
    # shellcheck disable=SC2046
    assert_noticed $(seq -f 'orders/folders/%g/x' 0 159)
    assert_rest_served orders/sub2/note orders/small
    assert_event
}

@test "two folders change places, and one is moved into another" {
    mapfile -t FOUND < <(find "$TABLES" -mindepth 4 -name .d -printf '%h\n' | sort)
    exchange_files "${FOUND[0]}" "${FOUND[1]}"
    mount_store
    # shellcheck disable=SC2046
    as alice outcomes $(seq -f 'orders/folders/%g/x' 0 159) >"$T/outcomes"
    equal "$(grep -c '^ok$' "$T/outcomes")" 158
    equal "$(grep -cxE "$EBADMSG|$EUCLEAN" "$T/outcomes")" 2
    umount_store
    mv "${FOUND[0]}" "${FOUND[2]}/"
    mount_store
    # shellcheck disable=SC2046
    as alice outcomes $(seq -f 'orders/folders/%g/x' 0 159) >"$T/outcomes"
    equal "$(grep -c '^ok$' "$T/outcomes")" 158
    assert_rest_served orders/small
}

@test "two tables change places" {
    mapfile -t FOUND < <(find "$TABLES" -mindepth 1 -maxdepth 1 -type d)
    equal "${#FOUND[@]}" 2
    exchange_files "${FOUND[0]}" "${FOUND[1]}"
    mount_store
    assert_noticed orders/small others/well
    assert_event
}

# --- records, catalog, anchor, root ---

@test "each record is changed: nothing is read wrongly, the daemon serves on" {
    local record
    for record in "$STORE"/records/*; do
        pristine
        flip "$record" 40
        mount_store
        (cd "$MNT" && as alice sha256sum --check <"$SUMS") >"$T/check" 2>/dev/null || true
        # 'FAILED open or read' is a refusal; 'FAILED' alone were wrong content.
        if grep 'FAILED$' "$T/check"; then return 1; fi
        mountpoint -q "$MNT"
        assert_event
    done
}

@test "the records of two keys, of two tables change places" {
    local kind
    for kind in 1 2; do
        pristine
        local records=("$STORE"/records/*."$kind".*)
        exchange_files "${records[0]}" "${records[1]}"
        mount_store
        (cd "$MNT" && as alice sha256sum --check <"$SUMS") >"$T/check" 2>/dev/null || true
        if grep 'FAILED$' "$T/check"; then return 1; fi
        assert_event
    done
}

@test "one older record is put back, under its own name and under that of the new one" {
    local old new
    with_older_store orders/small
    old=$(comm -23 <(ls "$T/older/records") <(ls "$STORE/records"))
    new=$(comm -13 <(ls "$T/older/records") <(ls "$STORE/records"))
    equal "$(wc -w <<<"$old $new")" 2

    cp -a "$T/older/records/$old" "$STORE/records/"
    mount_store
    fails_with "$EACCES" as bob cat "$MNT/orders/small"
    assert_rest_served orders/small
    umount_store

    cat "$T/older/records/$old" >"$STORE/records/$new"
    mount_store
    fails_with '' as bob cat "$MNT/orders/small"
    assert_noticed orders/small
    assert_rest_served
    assert_event
}

@test "the whole store is put back: the host's anchor refuses, until the older one is accepted" {
    with_older_store orders/small
    rm -rf "$STORE"
    cp -a "$T/older" "$STORE"
    fails_with anchor mount_store
    kmsfs anchor accept "$STORE" --key-file "$KEYFILE" --reason 'restored on purpose'
    mount_store
    as bob cat "$MNT/orders/small" >"$T/read"
    kmsfs audit show >"$T/events"
    grep -q 'restored on purpose' "$T/events"
}

@test "the whole store is put back, to a host that never saw it: not noticed, as docs/threat-model.md says" {
    with_older_store orders/small
    rm -rf "$STORE" "$KMSFS_ANCHOR"
    cp -a "$T/older" "$STORE"
    mkdir -m 700 "$KMSFS_ANCHOR"
    mount_store
    as bob cat "$MNT/orders/small" >"$T/read"
}

@test "all metadata are put back under a running daemon: it keeps to the newer state" {
    mount_store
    kmsfs key add-user orders bob
    mkdir "$T/older"
    cp -a "$STORE/records" "$STORE"/catalog.? "$T/older/"
    kmsfs key remove-user orders bob
    rm -r "$STORE/records"
    cp -a "$T/older/." "$STORE/"
    fails_with "$EACCES" as bob cat "$MNT/orders/small"
    as alice cat "$MNT/orders/small" >"$T/read"
}

@test "one copy of the catalog is damaged or gone: the other heals it" {
    local copy
    for copy in catalog.a catalog.b; do
        pristine
        flip "$STORE/$copy" 60
        mount_store
        assert_rest_served others/well orders/small
        umount_store
        cmp "$STORE/catalog.a" "$STORE/catalog.b"
        rm "$STORE/$copy"
        mount_store
        assert_rest_served others/well orders/small
        umount_store
        cmp "$STORE/catalog.a" "$STORE/catalog.b"
    done
}

@test "both copies of the catalog are damaged, or gone: the store does not mount, and says why" {
    flip "$STORE/catalog.a" 60
    flip "$STORE/catalog.b" 61
    exits_with 6 mount_store
    fails_with catalog mount_store
    rm "$STORE"/catalog.?
    exits_with 6 mount_store
    fails_with '' mountpoint -q "$MNT"
}

@test "each field of the only slot is damaged: the store does not mount, and says why" {
    local size offset
    size=$(stat -c %s "$STORE/root")
    # Magic, version, number of slots, store id; then the slot.
    for ((offset = 0; offset < size; offset += 7)); do
        ((offset >= 12 && offset < 16 || offset >= 32 && offset < 64)) && continue
        cp "$BATS_FILE_TMPDIR/pristine/store/root" "$STORE/root"
        flip "$STORE/root" "$offset"
        fails_with kmsfs mount_store || { echo "byte $offset"; return 1; }
    done
    fails_with '' mountpoint -q "$MNT"
}

@test "what is beside the slots in root is damaged: it mounts, with an event" {
    local offset
    for offset in 14 40; do
        cp "$BATS_FILE_TMPDIR/pristine/store/root" "$STORE/root"
        flip "$STORE/root" "$offset"
        mount_store
        kmsfs --at "$MNT" audit show --event StoreFound | tail -n 1 | grep -q 'root is damaged' || { echo "byte $offset"; return 1; }
        umount_store
    done
}

# --- the trail ---

@test "the trail is changed, cut, loses its last or its first segment: verify says so" {
    local size segments
    # A second mount, so that there are two segments.
    mount_store
    assert_rest_served
    umount_store
    cp -a "$STORE" "$T/whole"
    verify_offline
    segments=("$STORE"/audit/*)
    size=$(stat -c %s "${segments[0]}")

    flip "${segments[0]}" $((size / 2))
    exits_with 6 verify_offline
    cp "$T/whole/audit/${segments[0]##*/}" "${segments[0]}"
    truncate -s $((size - 10)) "${segments[0]}"
    exits_with 6 verify_offline
    rm "${segments[0]}"
    exits_with 6 verify_offline
    cp "$T/whole/audit/${segments[0]##*/}" "${segments[0]}"
    rm "${segments[-1]}"
    exits_with 6 verify_offline
}

@test "a damaged trail does not stop the store, and stays damaged" {
    local segments=("$STORE"/audit/*)
    flip "${segments[0]}" 200
    mount_store
    assert_rest_served others/well orders/small
    exits_with 6 kmsfs audit verify
}
