#!/usr/bin/env bats
# Programs that ask much of a file system, at work inside a table, as its key user.

load common

setup() {
    new_paths
    start_store
    mount_store
    kmsfs table create work --user alice --owner alice --mode 700
    WORK=$MNT/work
    PLACE=$KMSFS_TEST_DIR/home/alice/place
    as alice mkdir "$PLACE"
}

# Before the common teardown, which cannot unmount what is in use.
eval "common_$(declare -f teardown)"
teardown() {
    kill_postgres
    rm -rf --one-file-system "$PLACE"
    ! mountpoint -q /mnt || umount -l /mnt
    common_teardown
}

# Takes the killed daemon's mount away and mounts anew.
mount_again() {
    expect_unclean_stop
    umount -l "$MNT"
    mount_store
}

# What may be seen of a tree without reading it: kinds, modes, links, times to the nanosecond, sizes, targets, ACLs and
# attributes. A folder's size and number of links are each file system's own.
looks() { # FOLDER
    cd "$1" || return
    find . -type d -printf '%p %y %m %T@\n' -o -printf '%p %y %m %n %T@ %s %l\n' | LC_ALL=C sort
    find . -printf '%i %p\n' | LC_ALL=C sort -k2 |
        awk '{ if (!($1 in first)) first[$1] = $2; print "same as", first[$1] ":", $2 }'
    find . ! -type l -print0 | LC_ALL=C sort -z | xargs -0 getfacl -n --
    find . -type f -print0 -o -type d -print0 | LC_ALL=C sort -z | xargs -0 getfattr -d -m '^user\.' --
}

same_tree() { # FOLDER FOLDER
    as alice diff -r --no-dereference --exclude='*.fifo' --exclude='*.socket' "$1" "$2"
    as alice looks "$1" >"$T/one"
    as alice looks "$2" >"$T/other"
    diff "$T/one" "$T/other"
}

# A tree with all that an archiver has to keep.
make_tree() { # FOLDER
    set -eu
    mkdir "$1"
    cd "$1"
    mkdir -p folder/below empty "$(printf 'bytes \351\377 of no text')"
    local i
    for i in {1..120}; do printf 'item %d\n' "$i" >"folder/below/$i"; done
    head -c 100000 /dev/urandom >random
    printf '%s' "a name with blanks, 'quotes' and a
line feed" >"$(printf "blanks 'quotes' and\na line feed")"
    ln random "folder/another name of random"
    ln random folder/below/third
    ln -s ../random folder/link
    ln -s /nowhere/at/all dangling
    mkfifo a.fifo
    truncate -s 300M sparse
    printf 'in the middle' | dd of=sparse bs=1 seek=150000000 conv=notrunc status=none
    printf x >set-user-id
    chmod 4750 set-user-id
    chmod 1777 empty
    setfacl -m u:bob:r-x,g:finance:rw- random folder
    setfacl -d -m u:carol:rwx folder
    setfattr -n user.colour -v ultramarine random
    setfattr -n user.bytes -v 0x00ff0a00 folder
    head -c 2000 /dev/zero | tr '\0' v >/tmp/value.$$
    setfattr -n user.long -v "$(cat /tmp/value.$$)" folder/below/7
    rm /tmp/value.$$
    touch -h -d '1999-12-31 23:59:59.123456789 UTC' dangling
    touch -d '2038-01-19 03:14:08.000000001 UTC' random
    touch -d '2001-02-03 04:05:06.987654321 UTC' folder/below folder empty
}

# --- git -----------------------------------------------------------------------------------------------------------

git_at_work() { # FOLDER
    set -eu
    export GIT_CONFIG_NOSYSTEM=1
    git config --global user.email alice@example.org
    git config --global user.name alice
    git config --global init.defaultBranch main
    cd "$1"
    git init -q repository
    cd repository
    local commit i
    for commit in 1 2 3 4 5; do
        for i in {1..80}; do
            mkdir -p "folder $((i % 9))"
            printf 'line %d of commit %d\n' "$i" "$commit" "$RANDOM" "$commit" >>"folder $((i % 9))/file $i"
        done
        head -c 300000 /dev/urandom >blob
        git add -A
        git commit -qm "commit $commit"
    done
    git checkout -q -b topic HEAD~2
    git mv 'folder 1' renamed
    git rm -qr 'folder 2'
    git commit -qm 'move and remove'
    git checkout -q main
    git stash list
    git tag -a -m 'a tag' v1
    # As by hard links, and as over a wire.
    git clone -q . ../linked
    git clone -q "file://$PWD" ../packed
    git gc -q
    git fsck --strict --full
    git worktree add -q ../worktree topic
    git status --porcelain
    git -C ../packed repack -adq
    git -C ../packed log --oneline --all | wc -l
}

git_is_whole() { # FOLDER
    set -eu
    local clone
    for clone in repository linked packed worktree; do
        git -C "$1/$clone" fsck --strict --full
        git -C "$1/$clone" status --porcelain
    done
    diff -r --exclude=.git "$1/repository" "$1/linked"
    diff -r --exclude=.git "$1/repository" "$1/packed"
    git -C "$1/packed" fetch -q
    git -C "$1/linked" checkout -q origin/topic
    diff -r --exclude=.git "$1/worktree" "$1/linked"
}

@test "git: commits, clones, gc and fsck, also after a remount" {
    as alice git_at_work "$WORK" >"$T/said" 2>&1 || { cat "$T/said"; return 1; }
    remount_store
    as alice git_is_whole "$WORK" >"$T/said" 2>&1 || { cat "$T/said"; return 1; }
    lacks error <"$T/said"
    lacks ' M ' <"$T/said"
}

# --- sqlite ----------------------------------------------------------------------------------------------------------

# Adds rows in transactions of their own, and prints each number when its transaction has been committed.
sqlite_writer() { # DATABASE WRITER ROWS
    local i
    for ((i = 1; i <= $3; i++)); do
        printf "INSERT INTO entries VALUES (%d, %d, hex(randomblob(200)));\n" "$2" "$i"
        printf "SELECT '%d %d';\n" "$2" "$i"
    done | stdbuf -oL sqlite3 -bail -cmd '.timeout 30000' -cmd 'PRAGMA synchronous=FULL;' "$1"
}

sqlite_rows() { as alice sqlite3 -cmd '.timeout 30000' "$WORK/db" "$1"; }

sqlite_start() {
    equal "$(sqlite_rows 'PRAGMA journal_mode=WAL')" wal
    sqlite_rows 'CREATE TABLE entries (writer INT, n INT, text TEXT, PRIMARY KEY (writer, n)); CREATE INDEX t ON entries (text)'
}

@test "sqlite in WAL mode: several writers and a reader, and an integrity check, also after a remount" {
    sqlite_start
    for writer in 1 2 3 4; do
        background as alice sqlite_writer "$WORK/db" "$writer" 100 >"$T/said.$writer"
    done
    while kill -0 "${BACKGROUND[0]}" 2>/dev/null; do
        equal "$(sqlite_rows 'PRAGMA quick_check')" ok
        sleep 0.2
    done
    await
    for _ in 1 2; do
        equal "$(sqlite_rows 'PRAGMA integrity_check')" ok
        equal "$(sqlite_rows 'SELECT count(*), count(DISTINCT writer), max(n) FROM entries')" '400|4|100'
        remount_store
    done
    # A shrinking database, and one without the log.
    sqlite_rows 'DELETE FROM entries WHERE n % 3 > 0; VACUUM; PRAGMA journal_mode=DELETE' >"$T/said"
    equal "$(sqlite_rows 'PRAGMA integrity_check')" ok
    equal "$(sqlite_rows 'SELECT count(*) FROM entries')" 132
}

@test "sqlite in WAL mode: the daemon is killed, and no committed row is lost" {
    sqlite_start
    for round in 1 2 3; do
        for writer in 1 2 3; do
            background as alice sqlite_writer "$WORK/db" "$round$writer" 20000 >"$T/said.$round$writer" 2>/dev/null
        done
        for writer in 1 2 3; do
            wait_until 30 test -s "$T/said.$round$writer"
        done
        sleep "0.$((RANDOM % 5 + 3))"
        kill_daemon
        await || true
        mount_again
        equal "$(sqlite_rows 'PRAGMA integrity_check')" ok
        for writer in 1 2 3; do
            last=$(grep -oE "^$round$writer [0-9]+$" "$T/said.$round$writer" | tail -n1 | cut -d' ' -f2)
            found=$(sqlite_rows "SELECT count(*) FROM entries WHERE writer = $round$writer AND n <= $last")
            equal "$found" "$last"
        done
    done
}

# --- cargo -----------------------------------------------------------------------------------------------------------

# The compiler may be in root's home; alice finds it at /mnt, in this namespace alone.
toolchain() {
    local sysroot
    sysroot=$(cd "$ROOT" && HOME=$(getent passwd "$(id -u)" | cut -d: -f6) rustc --print sysroot)
    if [[ $sysroot == /usr ]]; then
        TOOLCHAIN=/usr
    else
        mount --bind -o ro "$sysroot" /mnt
        TOOLCHAIN=/mnt
    fi
}

make_crate() { # FOLDER
    set -eu
    mkdir -p "$1/src" "$1/tests"
    cd "$1"
    cat >Cargo.toml <<'CRATE'
[package]
name = "greeting"
version = "0.1.0"
edition = "2021"
[dependencies]
words = { path = "words" }
CRATE
    mkdir -p words/src
    printf '[package]\nname = "words"\nversion = "0.1.0"\nedition = "2021"\n' >words/Cargo.toml
    echo 'pub fn greeting() -> &'"'"'static str { "built in a table" }' >words/src/lib.rs
    echo 'fn main() { println!("{}", words::greeting()); }' >src/main.rs
    # shellcheck disable=SC2016
    echo 'fn main() { println!("cargo:rustc-env=STAMP=here"); }' >build.rs
    printf '#[test]\nfn greets() { assert_eq!(words::greeting().len(), env!("STAMP").len() * 4); }\n' >tests/greets.rs
}

@test "cargo builds and tests a crate, and the program runs where it was built" {
    toolchain
    as alice make_crate "$WORK/crate"
    # shellcheck disable=SC2016
    cargo_there() {
        as alice env PATH="$TOOLCHAIN/bin:$PATH" CARGO_HOME="$WORK/cargo" bash -c 'cd "$1" && shift && cargo "$@" --offline' c "$WORK/crate" "$@"
    }
    cargo_there build >"$T/said" 2>&1 || { cat "$T/said"; return 1; }
    equal "$(as alice "$WORK/crate/target/debug/greeting")" 'built in a table'
    cargo_there test >"$T/said" 2>&1 || { cat "$T/said"; return 1; }
    grep -q '^test greets ... ok' "$T/said"
    # What was built stays so, and a change is seen.
    remount_store
    equal "$(as alice "$WORK/crate/target/debug/greeting")" 'built in a table'
    cargo_there build --verbose >"$T/said" 2>&1
    lacks Compiling <"$T/said"
    as alice sed -i 's/built in/rebuilt in/' "$WORK/crate/words/src/lib.rs"
    cargo_there build >"$T/said" 2>&1
    equal "$(as alice "$WORK/crate/target/debug/greeting")" 'rebuilt in a table'
    fails_with "$EACCES" as bob "$WORK/crate/target/debug/greeting"
}

# --- archivers -------------------------------------------------------------------------------------------------------

# Else rsync takes times within a second for equal.
NANOSECONDS=(--modify-window=-1)

@test "rsync -aHAX, in and out: links, ACLs, attributes, times, kinds and holes" {
    as alice make_tree "$PLACE/tree"
    as alice rsync -aHAXS "${NANOSECONDS[@]}" "$PLACE/tree/" "$WORK/tree/"
    same_tree "$PLACE/tree" "$WORK/tree"
    remount_store
    same_tree "$PLACE/tree" "$WORK/tree"
    # Nothing is left to do, by checksum and by every attribute.
    as alice rsync -aHAXScin "${NANOSECONDS[@]}" --delete "$PLACE/tree/" "$WORK/tree/" >"$T/said"
    equal "$(cat "$T/said")" ''
    # A hole takes next to no space in the store: 32 bytes for 4 KiB.
    (($(stat -c %b "$WORK/tree/sparse") < 300 * 1024 * 2 / 100))
    # A change of a few bytes, in place and beside.
    as alice sh -c "printf changed >>$PLACE/tree/random; rm $PLACE/tree/folder/below/1?; mv $PLACE/tree/folder $PLACE/tree/moved"
    as alice rsync -aHAXS "${NANOSECONDS[@]}" --delete "$PLACE/tree/" "$WORK/tree/"
    same_tree "$PLACE/tree" "$WORK/tree"
    as alice sh -c "printf 'in place' | dd of=$PLACE/tree/random bs=1 seek=5000 conv=notrunc status=none"
    as alice rsync -aHAX "${NANOSECONDS[@]}" --inplace --no-whole-file --delete "$PLACE/tree/" "$WORK/tree/"
    as alice rsync -aHAXS "${NANOSECONDS[@]}" "$WORK/tree/" "$PLACE/back/"
    same_tree "$PLACE/tree" "$PLACE/back"
}

@test "tar, with attributes and ACLs, from table to archive to table" {
    as alice make_tree "$WORK/tree"
    as alice tar -C "$WORK" --xattrs --acls --sparse -cf "$WORK/tree.tar" tree
    # Holes are not stored.
    (($(stat -c %s "$WORK/tree.tar") < 5000000))
    as alice tar -C "$WORK" --xattrs --acls --compare -f "$WORK/tree.tar"
    as alice mkdir "$WORK/again"
    as alice tar -C "$WORK/again" --xattrs --acls --same-permissions -xf "$WORK/tree.tar"
    same_tree "$WORK/tree" "$WORK/again/tree"
    remount_store
    same_tree "$WORK/tree" "$WORK/again/tree"
    as alice tar -C "$PLACE" --xattrs --acls --same-permissions -xf "$WORK/tree.tar"
    same_tree "$PLACE/tree" "$WORK/again/tree"
}

# --- vim -------------------------------------------------------------------------------------------------------------

vim_script() { # COMMAND...
    local arguments=() command
    for command in "$@"; do arguments+=(-c "$command"); done
    as alice vim -Nu NONE -es "${arguments[@]}" "$WORK/note" </dev/null
}

@test "vim: backups and undo files, undone in a later session" {
    set_up='set undofile undodir=. backup backupdir=. directory=.'
    vim_script "$set_up" 'call setline(1, "first")' write quit
    vim_script "$set_up" 'call setline(1, "second")' write quit
    equal "$(as alice cat "$WORK/note")" second
    equal "$(as alice cat "$WORK/note~")" first
    as alice test -s "$WORK/.note.un~"
    remount_store
    vim_script "$set_up" undo write quit
    equal "$(as alice cat "$WORK/note")" first
}

@test "vim: what was typed is recovered from the swap file after vim, then the daemon, was killed" {
    as alice sh -c "echo saved >$WORK/note"
    for killed in vim daemon; do
        terminal alice "vim -Nu NONE --cmd 'set directory=. updatecount=1 swapsync=fsync' $WORK/note"
        sees saved
        types "Gotyped before the $killed was killed\\x1b"
        wait_until 20 test -e "$WORK/.note.swp"
        types ':preserve\r'
        sees 'File preserved'
        if [[ $killed == vim ]]; then
            pkill -9 -u alice -x vim
            leaves || true
        else
            kill_daemon
            pkill -9 -u alice -x vim
            leaves || true
            mount_again
        fi
        terminal alice "vim -Nu NONE --cmd 'set directory=.' -r $WORK/note"
        sees 'Recovery completed|Press ENTER'
        types '\r:write!\r:quit!\r'
        leaves
        as alice grep -q "typed before the $killed was killed" "$WORK/note"
        as alice rm -f "$WORK/.note.swp"
    done
}

# --- PostgreSQL ------------------------------------------------------------------------------------------------------

POSTGRES_BIN=

# Where its programs are: installed, or unpacked by tests/run.sh.
find_postgres() {
    local found
    for found in /usr/lib/postgresql/*/bin "$ROOT"/target/postgresql/usr/lib/postgresql/*/bin; do
        [[ -x $found/initdb && -x $found/pgbench ]] || continue
        POSTGRES_BIN=$found
        if [[ $found == "$ROOT"/* ]]; then
            # Perhaps in root's home, too.
            mount --bind -o ro "$ROOT/target/postgresql/usr" /mnt
            POSTGRES_BIN=/mnt${found#"$ROOT/target/postgresql/usr"}
        fi
        return 0
    done
    echo "no PostgreSQL here: run tests/run.sh, which gets it" >&2
    return 1
}

pg() { # PROGRAM [ARGUMENT]...
    local program=$POSTGRES_BIN/$1
    shift
    # The socket is an item of the table, too.
    as alice env PGHOST="$WORK/run" PGDATA="$WORK/data" PGUSER=alice PGDATABASE=postgres "$program" "$@"
}

start_postgres() {
    pg pg_ctl start --silent --wait --timeout 60 --log "$PLACE/postgres.log" \
        --options "-c listen_addresses= -c unix_socket_directories=$WORK/run -c autovacuum_naptime=1s" >/dev/null 3>&- ||
        { tail -n 50 "$PLACE/postgres.log"; return 1; }
}

kill_postgres() {
    pkill -9 -u alice -x postgres || true
    wait_until 20 not pgrep -u alice -x postgres
}

query() { pg psql -XAtqc "$1"; }

# Money neither comes nor goes: what stands in each place is what its history says; each page and index is well-formed.
postgres_is_whole() {
    equal "$(query 'SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history)
        AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history)
        AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history)')" t
    pg pg_amcheck --install-missing --heapallindexed --database postgres
}

@test "PostgreSQL: initdb and pgbench; it is killed, the daemon is killed, and what was committed is there" {
    find_postgres
    as alice mkdir -m 700 "$WORK/run"
    pg initdb --auth trust --data-checksums --no-locale --encoding UTF8 >"$T/said"
    start_postgres
    pg pgbench --initialize --quiet --scale 2 postgres >"$T/said" 2>&1
    pg pgbench --no-vacuum --client 4 --jobs 2 --time 3 postgres >"$T/said" 2>&1 || { cat "$T/said"; return 1; }
    postgres_is_whole

    # The server dies in the middle.
    background pg pgbench --no-vacuum --client 4 --time 60 postgres >"$T/said" 2>&1
    sleep 1.5
    kill_postgres
    await || true
    start_postgres
    postgres_is_whole

    # The file system dies in the middle.
    before=$(query 'SELECT count(*) FROM pgbench_history')
    background pg pgbench --no-vacuum --client 4 --time 60 --log --log-prefix="$PLACE/log" postgres >"$T/said" 2>&1
    logged() { test -s "$(echo "$PLACE"/log.*)"; }
    wait_until 20 logged
    sleep 1
    kill_daemon
    kill_postgres
    await || true
    mount_again
    start_postgres
    postgres_is_whole
    committed=$(wc -l <"$(echo "$PLACE"/log.*)")
    ((committed > 0 && $(query 'SELECT count(*) FROM pgbench_history') >= before + committed))

    pg pg_ctl stop --silent --wait --mode fast
    umount_store
    mount_store
    start_postgres
    postgres_is_whole
    pg pg_ctl stop --silent --wait --mode fast
    equal "$(pg pg_checksums --check | awk '/^Bad checksums/ { print $NF }')" 0
}
