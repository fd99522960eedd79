# Shared by deploy/demo and deploy/test: what a fresh Debian or Ubuntu machine needs, and how skep is built.
# shellcheck shell=bash

set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$top"

say() { printf '\n== %s\n' "$*"; }
fail() { printf '%s\n' "$*" >&2; exit 1; }

# Installs Debian packages that are missing. Without root, or without apt, names them.
need_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    printf 'missing packages: %s (as root: apt-get install %s)\n' "${missing[*]}" "${missing[*]}" >&2
    return 1
  fi
  say "installing ${missing[*]}"
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1 || {
    apt-get update >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" >/dev/null
  }
}

# `sudo` drops the PATH on which rustup put cargo.
find_cargo() {
  if ! command -v cargo >/dev/null; then
    local home
    home=$(getent passwd "${SUDO_USER:-$(id -un)}" | cut -d: -f6)
    [ -x "$home/.cargo/bin/cargo" ] || fail 'cargo is missing: install Rust 1.92 or later (https://rustup.rs), then run this again'
    export PATH="$home/.cargo/bin:$PATH" RUSTUP_HOME="${RUSTUP_HOME:-$home/.rustup}" CARGO_HOME="${CARGO_HOME:-$home/.cargo}"
  fi
}

# Why a lab cannot run here, in one sentence; nothing when it can.
lab_obstacle() {
  if [ "$(id -u)" -ne 0 ]; then
    echo 'network namespaces, mounts and cgroups need root: run it with sudo'
  elif ! unshare --net --mount true 2>/dev/null; then
    echo 'this machine does not allow new network and mount namespaces: use a real or virtual machine, or a privileged container'
  fi
}

# What is compiled here is compiled once: what the compiler would note down for the next time takes longer than it saves.
export CARGO_INCREMENTAL=${CARGO_INCREMENTAL:-0}

# Builds the daemon and the static shim.
build_skep() {
  find_programs
  cargo build --locked -p skep
  build_shim
}

# Builds and lints the same and all tests, in one run. Some libraries have more features in tests, and a daemon built by
# itself would have those, and all crates above them, ours first, compiled a second time; `cargo clippy` reads all
# libraries once more and throws away what it compiled. So clippy's driver, a compiler with more lints, is cargo's wrapper
# for our crates, here and for what runs afterwards; CLIPPY_ARGS is how `cargo clippy` hands `-D warnings` to it.
build_tests() {
  find_programs
  build_shim
  export RUSTC_WORKSPACE_WRAPPER=clippy-driver CLIPPY_ARGS='-Dwarnings__CLIPPY_HACKERY__'
  cargo build --locked --workspace --all-targets
}

# Position-fixed and without a dynamic linker it costs a quarter of the memory.
build_shim() {
  RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static' cargo build --locked -p skep-shim --target "$host"
}

# Where build_skep puts them.
find_programs() {
  host=$(rustc -vV | sed -n 's/^host: //p')
  local target=${CARGO_TARGET_DIR:-$top/target}
  export SKEP_SHIM="$target/$host/debug/skep-shim" SKEP="$target/debug/skep"
}

# The docker CLI: the one on PATH, else the distribution's, unpacked without installing an engine.
find_docker_cli() {
  if command -v docker >/dev/null; then
    DOCKER=$(command -v docker)
  else
    local place="${CARGO_TARGET_DIR:-$top/target}/docker-cli" package
    if [ ! -x "$place/usr/bin/docker" ]; then
      say 'unpacking the docker CLI of the distribution'
      mkdir -p "$place"
      for package in docker-cli docker.io; do
        (cd "$place" && apt-get download "$package" >/dev/null 2>&1 && dpkg-deb -x "$package"_*.deb .) || continue
        [ -x "$place/usr/bin/docker" ] && break
      done
    fi
    DOCKER="$place/usr/bin/docker"
  fi
  [ -x "$DOCKER" ] || fail 'no docker CLI: install docker-cli (Debian 13, Ubuntu: docker.io)'
  export DOCKER
}

# A program of others that the tests run as a service: Debian's nginx, unpacked and never installed, for its package would
# start a server here.
find_nginx() {
  local place="${CARGO_TARGET_DIR:-$top/target}/nginx"
  if [ ! -x "$place/usr/sbin/nginx" ]; then
    say 'unpacking nginx'
    mkdir -p "$place"
    (cd "$place" && apt-get download nginx >/dev/null 2>&1 && dpkg-deb -x nginx_*.deb .) || true
  fi
  export NGINX="$place/usr/sbin/nginx"
  [ -x "$NGINX" ] || fail 'the package nginx cannot be downloaded; the tests need it: apt-get download nginx'
}

# Programs under whose names manifests run here, where no image comes from the internet: Debian's, with all that they need,
# unpacked into one tree and never installed. `find_stand_ins all` adds what only deploy/stacks uses.
find_stand_ins() {
  local place="${CARGO_TARGET_DIR:-$top/target}/stand-ins" package link
  local packages=(tar libc-bin busybox-static redis-server redis-tools nginx mariadb-server-core mariadb-client-core php-cli php-mysql adminer wordpress)
  [ "${1:-}" != all ] || packages+=(php-pgsql postgresql prometheus prometheus-node-exporter rabbitmq-server)
  export SKEP_STAND_INS="$place/root"
  local wanted missing=0
  for wanted in "${packages[@]}"; do
    grep -qsxF "$wanted" "$place/unpacked" || missing=1
  done
  [ $missing -ne 0 ] || return 0
  say 'unpacking the programs of the stand-in images'
  mkdir -p "$place/packages/partial" "$SKEP_STAND_INS"
  : >"$place/nothing-installed"
  local download=(apt-get -qq -y --download-only -o "Dir::State::status=$place/nothing-installed"
    -o "Dir::Cache::archives=$place/packages" -o Debug::NoLocking=1 -o APT::Install-Recommends=0
    -o APT::Sandbox::User=root install "${packages[@]}")
  "${download[@]}" >/dev/null 2>&1 || { apt-get update >/dev/null && "${download[@]}" >/dev/null; } ||
    fail "these packages cannot be downloaded; the tests need them: ${packages[*]}"
  # A merged /usr, which packages expect and do not bring.
  for link in bin sbin lib lib64; do
    mkdir -p "$SKEP_STAND_INS/usr/$link"
    ln -sfn "usr/$link" "$SKEP_STAND_INS/$link"
  done
  for package in "$place"/packages/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x -C "$SKEP_STAND_INS" --keep-directory-symlink \
      --exclude=./usr/share/doc --exclude=./usr/share/man --exclude=./usr/share/locale
  done
  rm -r "$place/packages"
  printf '%s\n' "${packages[@]}" >"$place/unpacked"
}
