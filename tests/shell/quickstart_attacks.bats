#!/usr/bin/env bats
# The attacks of docs/threat-model.md, section 3, that are said to be noticed, on the store that mount-examples/quickstart.sh
# makes: a row a test. tests/shell/attacks.bats goes deeper, on a store whose items are of many shapes.

load common
load attacks

# Plays the quickstart, goes on in its mount as its hints say, unmounts, and keeps store, key file and anchor.
setup_file() {
    common_setup_file
    new_paths
    # Where nobody else's quickstart is.
    mkdir "$T/lib" "$T/kept"
    mount --bind "$T/lib" /var/lib
    KMSFS_QUICKSTART_BINARY=$KMSFS bounded 300 "$ROOT/mount-examples/quickstart.sh" --keep >"$T/transcript" 2>&1 3>&- ||
        { cat "$T/transcript"; return 1; }
    local work pid
    work=$(echo /var/lib/kmsfs-quickstart.*)
    pid=$(<"$work/daemon")
    inside() { bounded 120 nsenter -t "$pid" -m "$@"; }
    inside setpriv --reuid=alice --regid=alice --init-groups bash -c "$(declare -f go_on); go_on"
    inside setpriv --reuid=alice --regid=alice --init-groups \
        bash -c 'cd /mnt/kms && find . -type f -exec sha256sum {} +' >"$T/kept/sums"
    inside find /mnt/kms/ -mindepth 1 -printf '%i %P\n' | sort >"$T/items"
    find "$work/srv/store/tables" -mindepth 1 -printf '%i tables/%P\n' | sort >"$T/files"
    join "$T/items" "$T/files" | cut -d' ' -f2- >"$T/kept/map"
    inside umount /mnt/kms
    wait_until 60 not test -d "/proc/$pid"
    cp -a "$work/srv/store" "$T/kept/store"
    cp -a "$work/srv/store.key" "$T/kept/key"
    cp -a "$work/anchor" "$T/kept/anchor"
    "$ROOT/mount-examples/quickstart.sh" --clean
    umount /var/lib
    mv "$T/kept" "$BATS_FILE_TMPDIR/pristine"
}

# What alice adds: items of more than a block, folders. Of the 7,910 languages she keeps some hundred, for speed.
go_on() {
    set -eu
    umask 007
    cd /mnt/kms/countries
    cp /usr/share/iso-codes/json/iso_3166-2.json large.json
    tac large.json >large2.json
    head -c "$(stat -c %s large.json)" /dev/zero >blank
    mkdir north south
    cp NO.json SE.json FI.json north/
    cp IT.json ES.json PT.json south/
    cd ../languages
    rm [b-z]* a[b-z]*
}

# The backing file or folder of a path on the mount.
at() { # PATH
    local found
    found=$(awk -v path="$1" '$1 == path { print $2 }' "$BATS_FILE_TMPDIR/pristine/map")
    [[ -n $found ]] || { echo "nothing is known of $1" >&2; return 1; }
    echo "$STORE/$found"
}

# Files in a directory of the store as quickstart has left it.
files() { find "$BATS_FILE_TMPDIR/pristine/store/$1" -type f -printf "$STORE/$1/%P\n" | sort; }

well() { assert_rest_served "${@:-currencies/NOK.json}" countries/SE.json; }

# Nothing is read wrongly: each item is refused or as it was. How many are refused goes to REFUSED.
nothing_wrong() {
    (cd "$MNT" && as alice sha256sum --check <"$SUMS") >"$T/check" 2>/dev/null || true
    equal "$(wc -l <"$T/check")" "$(wc -l <"$SUMS")"
    if grep 'FAILED$' "$T/check"; then return 1; fi
    REFUSED=$(grep -c 'FAILED open or read$' "$T/check" || true)
    mountpoint -q "$MNT"
}

@test "as quickstart leaves it, all is well: alice reads, bob and root do not, the trail verifies" {
    mount_store
    (cd "$MNT" && as alice sha256sum --check --quiet <"$SUMS")
    (($(wc -l <"$SUMS") > 430))
    fails_with "$EACCES" as bob cat "$MNT/countries/NO.json"
    fails_with "$EACCES" cat "$MNT/countries/NO.json"
    kmsfs audit verify
}

@test "flip any bit of any file: of each item in a table, one" {
    local file size number=0
    while read -r file; do
        size=$(stat -c %s "$file")
        flip "$file" $((number * 7919 % size)) $((number % 8))
        number=$((number + 1))
    done < <(find "$(at currencies)" -type f ! -name '.*' | sort)
    ((number == 181))
    mount_store
    nothing_wrong
    equal "$REFUSED" 181
    fails_with "$EACCES" as bob cat "$MNT/currencies/NOK.json"
    # A damaged item can be removed.
    as alice rm "$MNT/currencies/NOK.json"
    equal "$(outcome currencies/NOK.json)" "$ENOENT"
    assert_rest_served countries/SE.json languages/aaa.json
    assert_event
}

@test "flip any bit of any file: of a name, of a folder" {
    local file name first=A
    file=$(at countries/NO.json)
    name=${file##*/}
    [[ $name != A* ]] || first=B
    mv "$file" "${file%/*}/$first${name:1}"
    flip "$(at countries/north)/.d" 20 3
    mount_store
    # Left out of the listing.
    as alice names countries >"$T/names"
    not grep -qx NO.json "$T/names"
    grep -qx FI.json "$T/names"
    assert_noticed countries/north/NO.json
    well countries/south/IT.json
    assert_event
}

@test "flip any bit of any file: of each record, of the catalog, the journal, the trail, the root" {
    local file copy hit=0
    for file in $(files records); do
        pristine
        flip "$file" $((RANDOM % $(stat -c %s "$file"))) $((RANDOM % 8))
        mount_store
        nothing_wrong
        # A key or a table is one of three. The store's policy may deny anybody anything: without it, all is refused.
        [[ $file != *.[12].* ]] || ((REFUSED < $(wc -l <"$SUMS")))
        ((hit += REFUSED > 0, 1))
        assert_event
    done
    # Each of three keys and of three tables is needed for some item.
    ((hit >= 6))
    for copy in catalog.a catalog.b; do
        pristine
        flip "$STORE/$copy" $((RANDOM % $(stat -c %s "$STORE/$copy"))) $((RANDOM % 8))
        mount_store
        well
        umount_store
        cmp "$STORE/catalog.a" "$STORE/catalog.b"
    done
    for file in $(files journal); do
        pristine
        [[ -s $file ]] || continue
        flip "$file" $((RANDOM % $(stat -c %s "$file")))
        mount_store
        nothing_wrong
        equal "$REFUSED" 0
        umount_store
    done
    for file in $(files audit); do
        pristine
        flip "$file" $((RANDOM % $(stat -c %s "$file")))
        mount_store
        well
        exits_with 6 kmsfs audit verify
        umount_store
    done
    pristine
    flip "$STORE/root" 80
    fails_with 'kmsfs: ' mount_store
    not mountpoint -q "$MNT"
}

@test "swap two blocks, headers, items, names" {
    local large large2 one two
    large=$(at countries/large.json) large2=$(at countries/large2.json)
    exchange "$large" $((4096 * 2)) "$large" $((4096 * 3)) 4096
    exchange "$large2" $((4096 * 2)) "$(at countries/blank)" $((4096 * 2)) 4096
    mount_store
    assert_noticed countries/large.json countries/large2.json countries/blank
    well
    umount_store

    pristine
    exchange "$large" 0 "$large2" 0 512
    one=$(at countries/NO.json) two=$(at countries/SE.json)
    exchange_files "$one" "$two"
    cp "$(at countries/FI.json)" "$T/one"
    cat "$T/one" >"$(at currencies/NOK.json)"
    mount_store
    assert_noticed countries/large.json countries/large2.json countries/NO.json countries/SE.json currencies/NOK.json
    assert_rest_served countries/FI.json currencies/EUR.json
    assert_event
}

@test "swap two directories, two tables" {
    exchange_files "$(at countries/north)" "$(at countries/south)"
    mount_store
    assert_noticed countries/north/NO.json countries/south/IT.json
    well
    assert_event
    pristine
    exchange_files "$(at countries)" "$(at currencies)"
    mount_store
    assert_noticed countries/NO.json currencies/NOK.json
    assert_rest_served languages/aaa.json
    assert_event
}

@test "swap two sealed keys, two records" {
    local kind
    for kind in 1 2; do
        pristine
        local records=("$STORE"/records/*."$kind".*)
        ((${#records[@]} >= 3))
        exchange_files "${records[0]}" "${records[1]}"
        mount_store
        nothing_wrong
        ((REFUSED < $(wc -l <"$SUMS")))
        assert_event
    done
}

@test "cut or extend an item, zero a block" {
    local file
    for by in -1 -500 +1 +4096; do
        pristine
        truncate -s "$by" "$(at countries/large.json)"
        truncate -s "$by" "$(at countries/NO.json)"
        mount_store
        assert_noticed countries/large.json countries/NO.json
        well
        assert_event
    done
    pristine
    dd if=/dev/zero of="$(at countries/large.json)" bs=4096 seek=7 count=1 conv=notrunc status=none
    dd if=/dev/zero of="$(at countries/large2.json)" bs=4096 seek=7 count=1 conv=notrunc status=none
    # And the entry with it: page 7 is block 6.
    dd if=/dev/zero of="$(at countries/large2.json)" bs=32 seek=$((16 + 6)) count=1 conv=notrunc status=none
    fallocate --punch-hole --offset 8192 --length 8192 "$(at countries/blank)"
    mount_store
    assert_noticed countries/large.json countries/large2.json countries/blank
    well
    assert_event
}

@test "change a policy: the key's items fail, the others are served" {
    local before=("$STORE"/records/*) after record
    mount_store
    kmsfs key add-user countries bob
    umount_store
    mapfile -t after < <(ls -d "$STORE"/records/*)
    # The one record that has changed is the policy's.
    record=$(comm -13 <(printf '%s\n' "${before[@]}") <(printf '%s\n' "${after[@]}"))
    equal "$(wc -l <<<"$record")" 1
    flip "$record" $((RANDOM % $(stat -c %s "$record")))
    mount_store
    assert_noticed countries/NO.json countries/large.json
    fails_with '' as bob cat "$MNT/countries/NO.json"
    assert_rest_served currencies/NOK.json languages/aaa.json
    assert_event
}

@test "put an older version of one record back: noticed, also after a remount" {
    local old new
    with_older_store countries/NO.json
    old=$(comm -23 <(ls "$T/older/records") <(ls "$STORE/records"))
    new=$(comm -13 <(ls "$T/older/records") <(ls "$STORE/records"))
    equal "$(wc -w <<<"$old $new")" 2
    cp -a "$T/older/records/$old" "$STORE/records/"
    mount_store
    fails_with "$EACCES" as bob cat "$MNT/countries/NO.json"
    well
    umount_store
    cat "$T/older/records/$old" >"$STORE/records/$new"
    for _ in 1 2; do
        mount_store
        fails_with '' as bob cat "$MNT/countries/NO.json"
        assert_noticed countries/NO.json
        assert_rest_served currencies/NOK.json
        assert_event
    done
}

@test "put the whole store's metadata back: the running daemon and the anchor notice" {
    mount_store
    kmsfs key add-user countries bob
    mkdir "$T/metadata"
    cp -a "$STORE/records" "$STORE"/catalog.? "$T/metadata/"
    kmsfs key remove-user countries bob
    rm -r "$STORE/records"
    cp -a "$T/metadata/." "$STORE/"
    fails_with "$EACCES" as bob cat "$MNT/countries/NO.json"
    well
    umount_store
    # Once more, while nobody serves it.
    rm -r "$STORE/records"
    cp -a "$T/metadata/." "$STORE/"
    exits_with 6 mount_store
    fails_with anchor mount_store
    not mountpoint -q "$MNT"
}
