#!/bin/sh
# Set up what `make` needs: `bootstrap.sh venv` the virtual environment, `bootstrap.sh services` the server programs,
# `bootstrap.sh peers` what `make test` alone has besides, and does without where it must.
# Quick when nothing is to be done; safe to run again after an interruption.
set -eu
cd "$(dirname "$0")/../.."

say() { printf '%s\n' "$*"; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# --- Debian packages -------------------------------------------------------------------------------------------------

# As we are, or by a sudo that asks for no password.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

can_install() { command -v apt-get >/dev/null 2>&1 && as_root true 2>/dev/null; }

apt_install() {
    say "Installing $* by apt-get (this takes a while) ..."
    as_root sh deploy/local/bootstrap.sh install-as-root "$@"
}

# Runs as root. The packages would start servers of the machine's own and make a main cluster: both are held back for the
# time of the installation, and nothing that was there before is touched.
install_as_root() {
    policy=/usr/sbin/policy-rc.d
    cluster=/etc/postgresql-common/createcluster.conf
    log=$(mktemp)
    undo="rm -f $log"
    trap 'eval "$undo"' EXIT
    trap 'exit 130' INT TERM HUP
    if [ ! -e "$policy" ]; then
        undo="$undo $policy"
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    case " $* " in *" postgresql "*) concerned=yes ;; *) concerned= ;; esac
    if [ -n "$concerned" ] && [ ! -e "$cluster" ]; then
        # The package keeps what it finds there; afterwards its own is put in place.
        undo="$undo $cluster; own=/usr/share/postgresql-common/createcluster.conf; [ ! -e \$own ] || cp \$own $cluster"
        mkdir -p "${cluster%/*}"
        echo 'create_main_cluster = false' >"$cluster"
    fi
    export DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1
    case " $* " in *" postfix "*) concerned=yes ;; *) concerned= ;; esac
    if [ -n "$concerned" ] && [ ! -e /etc/postfix/main.cf ]; then
        # Without a main.cf there is no mail server of the machine's own that could be started.
        echo 'postfix postfix/main_mailer_type select No configuration' | debconf-set-selections
    fi
    # --no-remove: postfix would take the place of a mail server that is in use here.
    if ! { apt-get update && apt-get install -y --no-install-recommends --no-remove \
        -o Dpkg::Options::=--force-confold "$@"; } </dev/null >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        fail "apt-get could not install $*; its last lines are above. Install them by hand, then run this again."
    fi
    # Freshly installed for our private use only: they need not start with the machine either.
    for package in "$@"; do
        case $package in
        rabbitmq-server) units="rabbitmq-server epmd.service epmd.socket" ;;
        postgresql | postfix | prometheus) units=$package ;;
        *) units= ;;
        esac
        for unit in $units; do systemctl disable --quiet "$unit" 2>/dev/null || true; done
    done
}

# --- the virtual environment -----------------------------------------------------------------------------------------

# A venv is good for one place and one set of pins.
fingerprint() { printf '%s %s\n' "$(cat requirements.lock pyproject.toml | sha256sum | cut -d ' ' -f 1)" "$PWD"; }

find_python() {
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$candidate
            return
        fi
    done
    fail "Python 3.11 or newer is needed; python3 here is: $(python3 --version 2>&1 || true)." \
        "Install a newer one (Debian 12 and later: apt-get install python3 python3-venv)."
}

make_venv() {
    find_python
    say "Making .venv with $("$python" --version) ..."
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        if can_install; then
            apt_install "$python-venv"
        else
            fail "$python cannot make a virtual environment: its module ensurepip is missing." \
                "Install the package $python-venv (Debian: apt-get install $python-venv), then run this again."
        fi
    fi
    "$python" -m venv --clear .venv || fail "$python -m venv .venv failed in $PWD; what it said is above."
}

venv() {
    want=$(fingerprint)
    if [ -x .venv/bin/python ] && [ "$(cat .venv/.stamp 2>/dev/null)" = "$want" ]; then
        return
    fi
    # .making marks an installation that was interrupted; a venv that was moved has the old path in its scripts.
    case $(head -n 1 .venv/bin/pip 2>/dev/null || true) in
    "#!$PWD/.venv/bin/"*) [ ! -e .venv/.making ] && .venv/bin/python -m pip --version >/dev/null 2>&1 || make_venv ;;
    *) make_venv ;;
    esac
    rm -f .venv/.stamp
    : >.venv/.making
    say "Installing the pinned dependencies ..."
    # -qq: errors only. Warnings here are about the machine's pip configuration, not about us.
    .venv/bin/python -m pip -qq --disable-pip-version-check install --require-hashes -r requirements.lock ||
        fail "pip could not install requirements.lock; what it said is above. Is the package index reachable?"
    say "Installing pushpush itself ..."
    .venv/bin/python -m pip -qq --disable-pip-version-check install --no-deps --no-build-isolation -e . ||
        fail "pip could not install the checkout in $PWD; what it said is above."
    rm -f .venv/.making
    printf '%s\n' "$want" >.venv/.stamp
}

# --- server programs -------------------------------------------------------------------------------------------------

any_program() {
    for program in "$@"; do
        if [ -x "$program" ]; then return 0; fi
    done
    return 1
}

# The same places as in rabbitmq.py and postgresql.py.
have_rabbitmq() {
    any_program /usr/lib/rabbitmq/bin/rabbitmq-server /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server \
        /opt/rabbitmq/sbin/rabbitmq-server /usr/local/lib/rabbitmq*/sbin/rabbitmq-server ||
        command -v rabbitmq-server >/dev/null 2>&1
}

have_postgresql() {
    any_program /usr/lib/postgresql/*/bin/postgres /usr/pgsql-*/bin/postgres /usr/local/pgsql/bin/postgres ||
        command -v postgres >/dev/null 2>&1
}

services() {
    if [ -n "${PUSHPUSH_AMQP_URL:-}" ] && [ -n "${PUSHPUSH_DATABASE_URL:-}" ]; then return; fi
    missing=
    have_rabbitmq || missing="rabbitmq-server"
    have_postgresql || missing="$missing postgresql"
    if [ -z "$missing" ]; then return; fi
    if ! can_install; then
        fail "The programs of these Debian packages are needed, and are not installed: ${missing# }." \
            "They are run as private processes under .run/, never as services of the machine." \
            "Install them (Debian, Ubuntu: apt-get install --no-install-recommends ${missing# }; Fedora: rabbitmq-server" \
            "postgresql-server; macOS is not supported), or name a broker and a database of your own in PUSHPUSH_AMQP_URL" \
            "and PUSHPUSH_DATABASE_URL."
    fi
    # shellcheck disable=SC2086 # a list of words
    apt_install $missing
    have_rabbitmq && have_postgresql || fail "${missing# } was installed, but its programs are not where they should be."
}

# --- peers of the tests ----------------------------------------------------------------------------------------------

have_postfix() { any_program /usr/sbin/postfix /usr/local/sbin/postfix || command -v postfix >/dev/null 2>&1; }

# The pages are tried in it.
have_chromium() { any_program /usr/bin/chromium /usr/bin/chromium-browser /usr/bin/google-chrome; }

# The image is built, and tried from inside.
have_builder() { command -v buildah >/dev/null 2>&1 && command -v mmdebstrap >/dev/null 2>&1; }

# Alerts are tried on made-up series.
have_promtool() { command -v promtool >/dev/null 2>&1; }

# Messages to try signatures on: those of Python's own tests, which Debian packs apart from its Python.
have_corpus() { .venv/bin/python -c 'import test.test_email' 2>/dev/null; }

# Exactly as new as the Python that is here: a newer one would bring a newer Python with it.
corpus_package() {
    name=$(.venv/bin/python -c 'import sys; print("python%d.%d" % sys.version_info[:2] * (sys.base_prefix == "/usr"))')
    [ -z "$name" ] || dpkg-query --show --showformat "lib$name-testsuite=\${Version}" "$name"
}

# A test that lacks something here is skipped, and says so: nothing of this may fail.
peers() {
    missing=
    have_postfix || missing=postfix
    have_chromium || missing="$missing chromium"
    have_builder || missing="$missing buildah mmdebstrap"
    have_promtool || missing="$missing prometheus"
    have_corpus || missing="$missing $(corpus_package 2>/dev/null || true)"
    for package in $missing; do
        # A version that is in no archive any more is not asked for on every run.
        case $package in *=*) known=$(apt-cache show "$package" 2>/dev/null || true) ;; *) known=yes ;; esac
        if [ -n "$known" ] && can_install && apt_install "$package"; then continue; fi
        say "note: the Debian package ${package%=*} is missing and cannot be installed here; the tests that need it are" \
            "skipped."
    done
}

case ${1:-} in
venv | services | peers) "$1" ;;
install-as-root) shift && install_as_root "$@" ;;
*) fail "usage: sh deploy/local/bootstrap.sh venv|services|peers" ;;
esac
