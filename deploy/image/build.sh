#!/bin/sh
# Build the container image of pushpush, `make image`. By environment variables:
#   IMAGE    its name, pushpush:VERSION when not set
#   BASE     the image it stands on: any with Python 3.11 or newer, its module venv, and certificates
#   BUILDER  docker, podman or buildah; the first that works here when not set
# `build.sh --local-base` asks no container registry: it makes a small Debian by mmdebstrap, from where this machine's
# apt takes its packages, and builds on that with buildah, as root, below .run/image. SUITE and APT_SOURCES name another
# release than that of this machine.
# pip takes packages from where it does on this machine; none of that stays in the image, nor in its history.
set -eu
umask 022  # what is made here is read by others: by the user of the image
cd "$(dirname "$0")/../.."

say() { printf '%s\n' "$*"; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit "${code:-1}"
}

work=$PWD/.run/image
file=deploy/image/Containerfile

# --- who builds ------------------------------------------------------------------------------------------------------

works() {
    case $1 in
    docker | podman) "$1" info >/dev/null 2>&1 ;;
    buildah) buildah --version >/dev/null 2>&1 ;;
    *) fail "BUILDER is $1; it can be docker, podman or buildah." ;;
    esac
}

find_builder() {
    if [ -n "${BUILDER:-}" ]; then
        works "$BUILDER" || fail "$BUILDER does not work here; \`$BUILDER info\` says why."
        builder=$BUILDER
        return
    fi
    for builder in docker podman buildah; do
        if works "$builder"; then return; fi
    done
    fail "docker, podman or buildah is needed, and none works here. Install one (Debian: apt-get install buildah)."
}

# --- a base of our own -----------------------------------------------------------------------------------------------

apt_sources() {
    for sources in "${APT_SOURCES:-}" /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list.d/ubuntu.sources \
        /etc/apt/sources.list; do
        if [ -s "$sources" ]; then return; fi
    done
    fail "no list of apt's sources found below /etc/apt; name one in APT_SOURCES."
}

# Without perl, manuals and translations, and without apt: nothing is installed there later.
make_base() {
    apt_sources
    say "Making a base of $suite by mmdebstrap ..."
    container=$("$work/buildah" from scratch)
    root=$("$work/buildah" mount "$container")
    # Python of Debian compiles by time unless SOURCE_DATE_EPOCH is set, and times stay as they are here.
    (unset SOURCE_DATE_EPOCH && exec mmdebstrap --variant=essential \
        --hook-dir=/usr/share/mmdebstrap/hooks/maybe-merged-usr \
        --include=usr-is-merged,python3,python3-venv,ca-certificates \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' "$suite" "$root" "$sources") >"$work/base.log" 2>&1 || {
        tail -n 20 "$work/base.log" >&2
        "$work/buildah" rm "$container" >/dev/null
        fail "mmdebstrap could not make a base of $suite; its last lines are above, all of them in .run/image/base.log."
    }
    # What is of this machine: where packages come from, devices, its name and its DNS.
    rm -rf "$root"/etc/apt "$root"/dev/* "$root"/etc/hostname "$root"/etc/resolv.conf "$root"/var/log/*
    "$work/buildah" config --cmd /bin/sh \
        --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    "$work/buildah" commit -q --rm "$container" "$BASE" >/dev/null
}

# What fails here is not the image's fault: the code is 69, EX_UNAVAILABLE of sysexits.h.
local_base() {
    code=69
    [ "$(id -u)" -eq 0 ] || fail "--local-base has to be run as root: it makes a file system of its own."
    for program in buildah mmdebstrap; do
        command -v "$program" >/dev/null 2>&1 ||
            fail "--local-base needs $program (Debian: apt-get install buildah mmdebstrap)."
    done
    suite=${SUITE:-$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")}
    [ -n "$suite" ] || fail "/etc/os-release does not say which Debian this is; name one in SUITE."
    mkdir -p "$work/tmp"
    export TMPDIR="$work/tmp"
    own_storage "${STORAGE_DRIVER:-overlay}"
    "$work/buildah" info >/dev/null 2>&1 || own_storage vfs
    builder=$work/buildah
    BASE=localhost/pushpush-base:$suite
    [ -n "$("$builder" images -q "$BASE" 2>/dev/null)" ] || make_base
    code=1
}

# A buildah that keeps everything below .run/image, and needs no runtime for containers.
own_storage() {
    cat >"$work/buildah" <<END
#!/bin/sh
export BUILDAH_ISOLATION=chroot
exec buildah --root '$work/$1' --runroot '$work/$1-run' --storage-driver '$1' "\$@"
END
    chmod 755 "$work/buildah"
}

# --- where pip takes packages from -----------------------------------------------------------------------------------

# What names a place, and how to reach it; variables win over files.
pip_settings() {
    for python in .venv/bin/python python3; do
        "$python" -m pip config list 2>/dev/null && return
    done
    return 0
}

write_pip_conf() {
    pip_settings | awk -v ca="${REQUESTS_CA_BUNDLE:-${SSL_CERT_FILE:-}}" '
        BEGIN {
            known = "index-url extra-index-url find-links no-index trusted-host proxy timeout default-timeout cert"
            split(known, names, " ")
            for (each in names) wanted[names[each]] = 1
            if (ca != "") value["cert"] = ca
        }
        match($0, /^(global|install|:env:)\.[a-z-]+=/) {
            name = substr($0, 1, RLENGTH - 1); strength = index("gi:", substr(name, 1, 1)); sub(/^[^.]*\./, "", name)
            if (!(name in wanted) || strength < strongest[name]) next
            strongest[name] = strength; value[name] = substr($0, RLENGTH + 2, length($0) - RLENGTH - 2)
            gsub(/\\n/, " ", value[name])
        }
        END { print "[global]"; for (name in value) print name " = " value[name] }' >"$secrets/settings"
    ca=$(sed -n 's/^cert = //p' "$secrets/settings")
    sed 's|^cert = .*|cert = /run/secrets/pip_ca|' "$secrets/settings" >"$secrets/pip_conf"
}

# Folders of packages on this machine, named in the settings. An index leads out of its own folder: ../files/NAME.whl.
package_folders() {
    for option in find-links index-url extra-index-url; do
        for each in $(sed -n "s/^$option = //p" "$secrets/settings"); do
            folder=${each#file://}
            [ "$option" = find-links ] || folder=$(dirname "$folder")
            case $folder in /?*) if [ -d "$folder" ]; then echo "$folder"; fi ;; esac
        done
    done | sort -u
}

# --- the build -------------------------------------------------------------------------------------------------------

# The moment of the last commit stands for that of the build, so that the same sources make the same image.
labels() {
    version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
    revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
    [ -z "$(git status --porcelain 2>/dev/null)" ] || revision=$revision-changed
    epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
    created=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ 2>/dev/null || date -u -r "$epoch" +%Y-%m-%dT%H:%M:%SZ)
    image=${IMAGE:-pushpush:$version}
}

build() {
    set -- -t "$image" -f "$file" --build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
        --build-arg "CREATED=$created" --secret "id=pip_conf,src=$secrets/pip_conf"
    [ -z "${BASE:-}" ] || set -- "$@" --build-arg "BASE=$BASE"
    [ -z "$ca" ] || set -- "$@" --secret "id=pip_ca,src=$ca"
    if [ "$builder" = docker ]; then
        folders=$(package_folders)
        [ -z "$folders" ] || say "note: a build by docker cannot read these folders of packages:" $folders
        for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
            if [ -n "$(eval "printf %s \"\${$name:-}\"")" ]; then set -- "$@" --build-arg "$name"; fi
        done
        DOCKER_BUILDKIT=1 docker build --build-arg "SOURCE_DATE_EPOCH=$epoch" "$@" .
        return
    fi
    for folder in $(package_folders); do set -- "$@" --volume "$folder:$folder:ro"; done
    # The format of docker keeps the health command, that of OCI has no place for it.
    set -- --layers --format docker --timestamp "$epoch" "$@"
    "$builder" build "$@" .
}

case ${1:-} in
--local-base) local_base ;;
'') find_builder ;;
*) fail "usage: [IMAGE=NAME] [BASE=NAME] [BUILDER=docker|podman|buildah] sh deploy/image/build.sh [--local-base]" ;;
esac
secrets=$(mktemp -d)
trap 'rm -rf "$secrets"' EXIT
trap 'exit 130' INT TERM HUP
write_pip_conf
labels
say "Building $image with $builder ..."
build || {
    [ "$builder" = "$work/buildah" ] ||
        say "Where the base cannot be fetched, name another in BASE, or run: sh deploy/image/build.sh --local-base" >&2
    fail "$builder could not build $image; what it said is above."
}
say "Built $image."
[ "$builder" != "$work/buildah" ] ||
    say "It is kept below .run/image. To take it elsewhere: .run/image/buildah push $image docker-archive:pushpush.tar"
