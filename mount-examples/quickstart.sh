#!/usr/bin/env bash
# The whole story on real data: a store, a mount, three tables, a key user who reads, others who do not, and an edit of
# a policy file that changes it.
#
#   mount-examples/quickstart.sh           tell it, and leave the machine as it was
#   mount-examples/quickstart.sh --keep    leave it mounted, and say how to go on as alice and as bob
#   mount-examples/quickstart.sh --clean   take away what --keep has left
#
# It needs root, for a mount namespace of its own: alice, bob, /srv/store and /mnt/kms exist only in there. It builds
# kmsfs, and installs with apt what it misses; these packages and target/ are all that stays behind.
set -euo pipefail

export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Each run has a directory of its own, which it locks as long as it, or the daemon that it leaves, lives.
prefix=/var/lib/kmsfs-quickstart
work=${KMSFS_QUICKSTART_WORK-}
iso=/usr/share/iso-codes/json

die() {
    echo "quickstart: $*" >&2
    [[ ! -r $work/log ]] || { echo "The daemon's log:"; tail -n 50 "$work/log"; } >&2
    exit 1
}

# --- before the story: what is needed --------------------------------------------------------------------------------

install_missing() {
    local packages=() command
    for command in fusermount3:fuse3 jq:jq xxd:xxd cc:build-essential setpriv:util-linux; do
        command -v "${command%%:*}" >/dev/null || packages+=("${command#*:}")
    done
    [[ -e $iso/iso_3166-1.json ]] || packages+=(iso-codes)
    [[ -n ${KMSFS_QUICKSTART_BINARY-} ]] || cargo_is_new_enough || packages+=(rustc-web cargo-web ca-certificates)
    ((${#packages[@]})) || return 0
    command -v apt-get >/dev/null || die "please install: ${packages[*]}"
    echo "Installing ${packages[*]} ..."
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
}

cargo_is_new_enough() {
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$repository/Cargo.toml")
    found=$(builder 'cargo --version' 2>/dev/null | awk '$1 == "cargo" { print $2 }')
    [[ -n $found && $(printf '%s\n' "$wanted" "$found" | sort -V | head -n1) == "$wanted" ]]
}

# Builds as who called sudo, if someone did: the checkout and the toolchain are his.
builder() { # SHELL-COMMAND
    if [[ -n ${SUDO_USER-} && $SUDO_USER != root ]]; then
        runuser -l "$SUDO_USER" -c "cd '$repository' && $1"
    else
        (cd "$repository" && bash -c "$1")
    fi
}

# Ends a run's daemon and removes its directory.
clean() { # DIRECTORY
    local pid=
    [[ ! -r $1/daemon ]] || pid=$(<"$1/daemon")
    # The number may mean another process by now: only the daemon has our mount.
    if [[ -n $pid ]] && grep -qs '/mnt/kms .* - fuse.kmsfs /srv/store' "/proc/$pid/mountinfo"; then
        nsenter -t "$pid" -m umount -l /mnt/kms || kill "$pid"
        for _ in {1..200}; do
            [[ -d /proc/$pid ]] || break
            sleep 0.05
        done
    fi
    rm -rf --one-file-system "$1"
}

# Cleans what --keep has left, and what a run has left that was killed; not a run that goes on.
clean_others() {
    local directory
    for directory in "$prefix".*; do
        [[ -d $directory ]] || continue
        if [[ -e $directory/kept ]] || flock -n "$directory/lock" true; then clean "$directory"; fi
    done
}

# --- in the namespace: paths and people that exist only there ----------------------------------------------------------

set_the_scene() {
    local name file
    mkdir -p "$work"/{srv,mnt/kms,home/alice,home/bob,anchor}
    chmod 755 "$work" "$work"/{srv,mnt,home}
    chmod 700 "$work/anchor"
    # The whole of /etc: a file alone would lose its mount as soon as somebody outside replaces it.
    cp -a /etc "$work/etc"
    for file in passwd group; do
        grep -vE '^(alice|bob|team):|^[^:]*:[^:]*:(61001|61002|62000):' "/etc/$file" >"$work/etc/$file"
    done
    for name in alice:61001 bob:61002; do
        printf '%s:x:%d:%d::%s:/bin/bash\n' "${name%:*}" "${name#*:}" "${name#*:}" "$work/home/${name%:*}" >>"$work/etc/passwd"
        printf '%s:x:%d:\n' "${name%:*}" "${name#*:}" >>"$work/etc/group"
        chown "${name#*:}:${name#*:}" "$work/home/${name%:*}"
    done
    printf 'team:x:62000:alice,bob\n' >>"$work/etc/group"
    mount --bind "$work/etc" /etc
    mount --bind "$work/srv" /srv
    mount --bind "$work/mnt" /mnt
    (umask 077 && head -c 64 /dev/urandom >/srv/store.key)
    mkdir -p "$work/bin"
    install -m 755 "$1" "$work/bin/kmsfs"
    export PATH="$work/bin:$PATH" KMSFS_ANCHOR="$work/anchor" KMSFS_AT=/mnt/kms
}

# --- how it is told --------------------------------------------------------------------------------------------------

if [[ -t 1 ]]; then bold=$'\e[1m' dim=$'\e[36m' plain=$'\e[0m'; else bold='' dim='' plain=''; fi

say() { printf '\n%s# %s%s\n' "$dim" "$*" "$plain"; }

as() { # USER SHELL-COMMAND
    if [[ $1 == root ]]; then
        bash -c "$2"
    else
        HOME=$work/home/$1 USER=$1 setpriv --reuid="$1" --regid="$1" --init-groups bash -c "$2"
    fi
}

# Where the commands run.
here=/

prompt() { # USER SHELL-COMMAND
    local sign='$'
    [[ $1 != root ]] || sign='#'
    printf '%s%s:%s%s %s%s\n' "$bold" "$1" "$here" "$sign" "$2" "$plain"
}

# Shows a command and what it prints; it must succeed.
shows() { # USER SHELL-COMMAND
    prompt "$@"
    as "$1" "cd $here && $2" 2>&1 || die 'this should have worked'
}

# Shows a command that must fail, for the reason that is told.
refuses() { # REASON USER SHELL-COMMAND
    local reason=$1 output status=0
    shift
    prompt "$@"
    output=$(as "$1" "cd $here && $2" 2>&1) || status=$?
    [[ -z $output ]] || printf '%s\n' "$output"
    if ((status == 0)) || [[ $output != *"$reason"* ]]; then
        die "this should have failed with '$reason'"
    fi
}

# One item a record: its name and its JSON, separated by a tab, from standard input.
fill() { # TABLE
    as alice "while IFS=\$'\\t' read -r name record; do printf '%s\\n' \"\$record\" >/mnt/kms/$1/\$name.json || exit 1; done"
}

# --- the story -------------------------------------------------------------------------------------------------------

tell() {
    local table

    say 'A store is a directory of ciphertext, sealed under a passphrase or a key file. A daemon serves it.'
    shows root 'kmsfs init /srv/store --key-file /srv/store.key'
    shows root "kmsfs mount /srv/store /mnt/kms --key-file /srv/store.key --log-file $work/log"
    awk '{ print $1; exit }' /srv/store/lock >"$work/daemon"

    say 'A table is a folder with a key of its own. alice is the key user; she and bob have every Unix right.'
    for table in countries languages currencies; do
        shows root "kmsfs table create $table --user alice --owner alice --group team --mode 2770"
    done

    say "An item is a file. alice fills the tables from Debian's iso-codes, an item for each record."
    jq -r '.["3166-1"][] | "\(.alpha_2)\t\(tojson)"' "$iso/iso_3166-1.json" | fill countries
    jq -r '.["639-3"][] | "\(.alpha_3)\t\(tojson)"' "$iso/iso_639-3.json" | fill languages
    jq -r '.["4217"][] | "\(.alpha_3)\t\(tojson)"' "$iso/iso_4217.json" | fill currencies
    here=/mnt/kms
    # shellcheck disable=SC2016
    shows alice 'for table in *; do echo "$table: $(ls $table | wc -l) items"; done'
    shows alice 'cat countries/NO.json'

    say 'bob sees them, and cannot read one. Nor can root: the key, not the mode, decides.'
    shows bob 'ls -l countries | sed -n 2,4p; id -Gn'
    refuses 'Permission denied' bob 'cat countries/NO.json'
    refuses 'Permission denied' root 'cat countries/NO.json'
    refuses 'Permission denied' root 'cp countries/NO.json /root/'

    say 'bob asks why.'
    shows bob 'cat .kms/why/countries/NO.json'

    say 'What the disk holds: names and contents are ciphertext, and no record is found in it.'
    here=/srv/store
    shows root 'ls'
    shows root "find tables -type f ! -name '.*' | sort | head -n 3"
    # shellcheck disable=SC2016
    shows root 'xxd "$(find tables -type f ! -name ".*" | sort | head -n 1)" | head -n 5'
    refuses '' root 'grep -r -e Norway -e Norwegian -e Krone -e countries .'
    echo '(nothing found)'
    here=/mnt/kms

    say 'The policy is a file, and root is its administrator: it edits it, as with any editor.'
    shows root "jq -c '.Statement[] | [.Sid, .Principal.Unix]' .kms/keys/countries/policy.json"
    shows root "sed -i 's/\"alice\"/\"alice\", \"bob\"/' .kms/keys/countries/policy.json"
    shows bob 'cat countries/NO.json'

    say 'A mistake is refused when it is saved; what was in force stays in force.'
    refuses 'Bad message' root "sed -i 's/\"bob\"/\"bbo\"/' .kms/keys/countries/policy.json"
    shows root 'cat .kms/keys/countries/policy.error'
    shows bob 'cut -c 1-40 countries/SE.json'

    say 'And out again. What bob still has open closes with it.'
    prompt bob '(sleep 2; cat) <countries/FI.json &'
    (as bob '(sleep 2; cat) </mnt/kms/countries/FI.json' >"$work/held" 2>&1 || true) &
    sleep 0.5
    shows root "sed -i 's/\"alice\", \"bob\"/\"alice\"/' .kms/keys/countries/policy.json"
    refuses 'Permission denied' bob 'cat countries/NO.json'
    wait $!
    cat "$work/held"
    not_in "$work/held" Finland

    say 'All of it stands in the trail, sealed and chained.'
    shows root "kmsfs audit show --denied --user bob -n 1 | jq -c '[.eventTime, .eventName, .userIdentity.uid, .errorCode, .requestParameters.encryptionContext]'"
    shows root 'kmsfs audit verify'
}

not_in() { # FILE TEXT
    ! grep -q "$2" "$1" || die "$1 should not hold $2"
}

finish() {
    say 'Unmounted, only ciphertext is left.'
    here=/
    shows root 'kmsfs umount /mnt/kms'
    shows root 'ls -A /mnt/kms | wc -l'
}

how_to_go_on() {
    local enter
    enter="nsenter -t $(<"$work/daemon") -m"
    cat <<HINTS

It stays mounted, in a namespace that only these commands enter:

  sudo $enter setpriv --reuid=alice --regid=alice --init-groups bash -c 'cd /mnt/kms; exec bash'
  sudo $enter setpriv --reuid=bob --regid=bob --init-groups bash -c 'cd /mnt/kms; exec bash'
  sudo $enter env KMSFS_AT=/mnt/kms PATH="$work/bin:\$PATH" bash -c 'cd /mnt/kms; exec bash'

To try, in turn:

  bob$   cat currencies/NOK.json                    denied
  bob$   cat .kms/why/currencies/NOK.json           and why
  root#  \$EDITOR .kms/keys/currencies/policy.json   add bob; leave out a brace and see what save says
  bob$   cat currencies/NOK.json
  root#  mkdir diary; cat .kms/keys/diary/policy.json
  root#  kmsfs audit show --denied

and in the end:  sudo $0 --clean
HINTS
}

main() {
    local keep=${1-} binary=${KMSFS_QUICKSTART_BINARY-}
    if [[ $(id -u) != 0 ]]; then
        command -v sudo >/dev/null || die 'must be run as root'
        exec sudo -- "$0" "$@"
    fi
    case $keep in
        --inside)
            set_the_scene "$2"
            tell
            if [[ $3 == --keep ]]; then how_to_go_on; else finish; fi
            return
            ;;
        --clean) clean_others; return ;;
        '' | --keep) ;;
        *) die 'usage: quickstart.sh [--keep | --clean]' ;;
    esac
    [[ -c /dev/fuse ]] || die 'there is no /dev/fuse here, so nothing can be mounted'
    if [[ $keep == --keep ]]; then clean_others; fi
    install_missing
    if [[ -z $binary ]]; then
        echo 'Building kmsfs ...'
        builder 'cargo build --release --quiet'
        binary=${CARGO_TARGET_DIR:-$repository/target}/release/kmsfs
    fi
    work=$(mktemp -d "$prefix.XXXXXX")
    export KMSFS_QUICKSTART_WORK=$work
    exec {lock}>"$work/lock"
    flock "$lock"
    if [[ $keep == --keep ]]; then touch "$work/kept"; else trap 'clean "$work"' EXIT; fi
    unshare --mount --propagation private "$0" --inside "$binary" "$keep"
}

main "$@"
