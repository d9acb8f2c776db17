#!/usr/bin/env bats
# What the kernel and the daemon remember of names and attributes, and that it is never old.

load common

setup() {
    new_paths
    start_store
    mount_store
    kmsfs table create a --user alice --user bob --owner alice --group finance --mode 2770
    A=$MNT/a
}

# What a folder holds, by a listing.
names() { # FOLDER
    (cd "$1" && find . -mindepth 1 -maxdepth 1 -printf '%f\n') | sort | paste -sd' '
}

@test "a listing that is kept is that of now, whoever changes the folder and however" {
    as alice sh -c "umask 002; mkdir $A/d $A/e"
    as alice touch "$A/d/one" "$A/e/other"
    listed() { equal "$(names "$A/d")" "$1" && equal "$(as bob bash -c "$(declare -f names); names $A/d")" "$1"; }
    listed 'one'
    listed 'one'
    as alice touch "$A/d/two"
    listed 'one two'
    as bob mv "$A/d/two" "$A/d/three"
    listed 'one three'
    as alice mv "$A/e/other" "$A/d/three"
    listed 'one three'
    equal "$(names "$A/e")" ''
    as alice mv "$A/d/one" "$A/e/one"
    listed 'three'
    as alice ln "$A/d/three" "$A/d/four"
    as alice ln -s three "$A/d/link"
    as alice mkfifo "$A/d/pipe"
    as alice mkdir "$A/d/folder"
    listed 'folder four link pipe three'
    as alice probe exchange "$A/d/three" "$A/e/one"
    as alice rmdir "$A/d/folder"
    as alice rm "$A/d/pipe"
    listed 'four link three'
    equal "$(find "$A/d" -type l -printf '%f')" link
    (cd "$A/d" && as alice rm -f three four link)
    listed ''
    as alice mv "$A/d" "$A/moved"
    equal "$(names "$A/moved")" ''
    equal "$(names "$A")" 'e moved'
}

@test "folders are emptied while others list them" {
    as alice mkdir "$A/d"
    as alice probe fill "$A/d" 0 1500
    # shellcheck disable=SC2016
    local lister='until [[ -e $1/stop ]]; do ls -l "$2" >/dev/null 2>&1; ls -f "$2" >/dev/null 2>&1; done'
    for _ in 1 2; do
        background bash -c "$lister" lister "$T" "$A/d"
    done
    ls -l "$A/d" >/dev/null
    for _ in 1 2; do
        as alice rm -r "$A/d"
        as alice mkdir "$A/d"
        as alice probe fill "$A/d" 0 300
        equal "$(find "$A/d" -type f | wc -l)" 300
    done
    touch "$T/stop"
    await
    equal "$(find "$A/d" -type f | sort -u | wc -l)" 300
}

@test "a name that was missing is there when it is made, and missing again when it goes" {
    missing() { fails_with "$ENOENT" ls -d "$A/x" && fails_with "$ENOENT" as bob ls -d "$A/x"; }
    as alice touch "$A/other"
    as alice mkdir "$A/folder"
    local make
    for make in "touch $A/x" "mkdir $A/x" "ln -s other $A/x" "mkfifo $A/x" "ln $A/other $A/x" "cp $A/other $A/x" \
        "mv $A/other $A/x" "mv -T $A/folder $A/x"; do
        missing
        missing
        # shellcheck disable=SC2086
        as alice $make
        ls -d "$A/x" >/dev/null
        as bob ls -d "$A/x" >/dev/null
        as bob rm -rf "$A/x"
        [[ -e $A/other ]] || as alice touch "$A/other"
    done
    missing
    # Tables and keys come by commands, of which the kernel knows nothing.
    fails_with "$ENOENT" stat "$MNT/b"
    fails_with "$ENOENT" stat "$MNT/.kms/keys/b"
    kmsfs table create b --user alice
    stat "$MNT/b" "$MNT/.kms/keys/b" >/dev/null
    equal "$(names "$MNT")" 'a b'
}

@test "access lists and capabilities that come later are seen, and those that go" {
    as alice sh -c "umask 077; echo text >$A/x; mkdir $A/d"
    has_acl() { [[ $(ls -ld "$1") =~ ^[^\ ]{10}\+ ]]; }
    for _ in 1 2; do
        not has_acl "$A/x"
        fails_with "$EACCES" as bob cat "$A/x"
        as alice setfacl -m u:bob:r "$A/x"
        has_acl "$A/x"
        equal "$(as bob cat "$A/x")" text
        ls -l "$A" >/dev/null
        has_acl "$A/x"
        as alice setfacl -b "$A/x"
    done
    # The umask holds until there is a default list, and again when there is none.
    made_with() { as alice rm -f "$A/d/new" && as alice sh -c "umask 077; : >$A/d/new" && stat -c %a "$A/d/new"; }
    for _ in 1 2; do
        equal "$(made_with)" 600
        as alice setfacl -d -m g::rw,o::r "$A/d"
        equal "$(made_with)" 664
        as alice setfacl -k "$A/d"
    done
    # A write asks for capabilities; those that are set after it are there, and gone after the next.
    local capability=0x0100000200200000000000000000000000000000
    as alice sh -c "echo more >>$A/x"
    not getfattr -n security.capability "$A/x" 2>"$T/error"
    setfattr -n security.capability -v "$capability" "$A/x"
    [[ $(getfattr -e hex -n security.capability "$A/x" 2>/dev/null) == *"$capability"* ]]
    as alice sh -c "echo more >>$A/x"
    not getfattr -n security.capability "$A/x" 2>"$T/error"
}

@test "a label is kept where it is set; where there is none, none is supported" {
    as alice touch "$A/x"
    fails_with 'Operation not supported' getfattr --absolute-names -n security.selinux "$A/x"
    setfattr -n security.selinux -v label "$A/x" || skip 'the host takes no such label'
    [[ $(getfattr --absolute-names -n security.selinux "$A/x") == *label* ]]
    setfattr -x security.selinux "$A/x"
    fails_with 'Operation not supported' getfattr --absolute-names -n security.selinux "$A/x"
}
