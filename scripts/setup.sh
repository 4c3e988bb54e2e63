#!/usr/bin/env bash
# Sets up what its arguments name, and does nothing where that is there already:
#   demo    .venv with the package and what demo/ and notebooks/ need
#   lab     .venv with that and JupyterLab
#   dev     .venv with the package and what its tests need
#   system  the system's packages that tests need, through apt, where this runs as root
set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$(pwd -P)
mkdir -p .cache

# pip wants a home that it can write to; a container often has none.
if [[ ! -w ${HOME:-} ]]; then
  export HOME="$root/.cache/home"
  mkdir -p "$HOME"
fi
export DEBIAN_FRONTEND=noninteractive PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

fail() {
  echo "setup: $*" >&2
  exit 1
}

apt_install() {
  [[ $EUID == 0 ]] && command -v apt-get >/dev/null || return 1
  echo "setup: installing $*"
  local log="$root/.cache/apt.log"
  if [[ -z ${apt_updated:-} ]]; then
    apt-get -qq -o DPkg::Lock::Timeout=300 update </dev/null >"$log" 2>&1 || tail -n 5 "$log" >&2
    apt_updated=1
  fi
  apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@" </dev/null >>"$log" 2>&1 && return
  tail -n 20 "$log" >&2
  return 1
}

# Prints the newest Python, from 3.10 on, that passes the test `$1`.
# A name on PATH may be a version manager's shim that refuses to run, so each is asked.
find_python() {
  local name
  for name in python3.14 python3.13 python3.12 python3.11 python3.10 python3; do
    if "$name" -c "import sys; assert sys.version_info >= (3, 10); $1" >/dev/null 2>&1; then
      echo "$name"
      return
    fi
  done
  return 1
}

make_venv() {
  local python version
  if ! python=$(find_python "import ensurepip, venv"); then
    python=$(find_python "") ||
      fail "Python 3.10 or newer is needed and none was found: install it (on Debian and Ubuntu: sudo apt-get install python3 python3-venv) and run this again."
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    apt_install "python$version-venv" || apt_install python3-venv ||
      fail "$python cannot make virtual environments: install python$version-venv (sudo apt-get install python$version-venv) and run this again."
    "$python" -c "import ensurepip, venv" 2>/dev/null ||
      fail "$python has no ensurepip module even with python$version-venv installed: install another Python from 3.10 on and run this again."
  fi
  echo "setup: making .venv with $("$python" --version)"
  rm -rf .venv
  "$python" -m venv .venv
}

# A checkout that was moved has an environment that still points to its old place.
venv_is_usable() {
  local prefix
  prefix=$(.venv/bin/python -c 'import sys; assert sys.version_info >= (3, 10); print(sys.prefix)' 2>/dev/null) &&
    [[ $prefix == "$root/.venv" ]] && .venv/bin/python -m pip --version >/dev/null 2>&1 &&
    [[ ! -f .venv/flow-root || $(<.venv/flow-root) == "$root" ]]
}

FOR_NOTEBOOKS=("numpy>=1.26" "matplotlib>=3.8" "nbclient>=0.10" "tqdm>=4.66")

setup_venv() {
  local extra=$1 want have enough='' packages
  want="$root $(sha256sum <pyproject.toml)"
  for have in demo lab dev; do
    # Each has what those before it have.
    [[ $have == "$extra" ]] && enough=1
    # bin/python is a link out of .venv: it breaks when the system's Python is replaced.
    [[ -n $enough && -x .venv/bin/python && -x .venv/bin/flow && $(cat ".venv/flow-$have" 2>/dev/null) == "$want" ]] &&
      return
  done
  venv_is_usable || make_venv
  echo "$root" >.venv/flow-root
  echo "setup: installing the package into .venv"
  case $extra in
    dev) packages=(-e ".[dev]") ;;
    lab) packages=(-e . "${FOR_NOTEBOOKS[@]}" "jupyterlab>=4.2") ;;
    demo) packages=(-e . "${FOR_NOTEBOOKS[@]}") ;;
  esac
  .venv/bin/python -m pip install -q "${packages[@]}"
  echo "$want" >".venv/flow-$extra"
}

setup_system() {
  local missing=() line
  while read -r line; do
    # Each line: a program, then the packages that bring it.
    set -- $line
    PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null || missing+=("${@:2}")
  done <<'LINES'
podman podman iptables
catatonit catatonit
runc runc
debootstrap debootstrap
bwrap bubblewrap
chromium chromium
s3fs s3fs
git git
ssh openssh-client
unshare util-linux
cc gcc libc6-dev
LINES
  [[ ${#missing[@]} == 0 ]] && return
  apt_install "${missing[@]}" ||
    echo "setup: could not install ${missing[*]}: the tests that need them will say so" >&2
}

exec 9>.cache/setup.lock
flock 9
for part in "$@"; do
  case $part in
    demo | lab | dev) setup_venv "$part" ;;
    system) setup_system ;;
    *) fail "unknown part '$part': use demo, lab, dev or system." ;;
  esac
done
