#!/bin/sh
# SPDX-License-Identifier: MIT
# Install what a purpose needs and this machine lacks: deps.sh [build|test|models|fuzz|bench|check]...
# Does nothing, offline and fast, when all is there.
set -eu

build="gcc libc6-dev systemtap-sdt-dev meson ninja-build pkg-config scdoc python3 libjansson-dev zlib1g-dev libzstd-dev"
need=
for purpose in "${@:-build}"; do
	case "$purpose" in
	build) need="$need $build" ;;
	test) need="$need $build spin qemu-system-x86 g++ liburcu-dev valgrind" ;;
	machines) need="$need qemu-system-arm qemu-system-ppc qemu-system-misc" ;; # other than x86
	models) need="$need gcc libc6-dev spin python3" ;;
	asan | tsan) need="$need $build qemu-system-x86 g++ liburcu-dev" ;;
	fuzz) need="$need $build clang libclang-rt-14-dev llvm" ;;
	bench) need="$need $build qemu-system-x86 liburcu-dev" ;;
	check) need="$need $build clang clang-format-14 shellcheck codespell" ;;
	portability-native | portability-posix) need="$need $build gcc" ;;
	portability-i686) need="$need $build gcc-i686-linux-gnu libc6-i386" ;;
	portability-aarch64 | portability-pages*) need="$need $build qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross" ;;
	portability-armhf) need="$need $build qemu-user gcc-arm-linux-gnueabihf libc6-dev-armhf-cross" ;;
	portability-s390x) need="$need $build qemu-user gcc-s390x-linux-gnu libc6-dev-s390x-cross" ;;
	portability-ppc64) need="$need $build qemu-user gcc-powerpc64-linux-gnu libc6-dev-ppc64-cross" ;;
	portability-windows) need="$need $build gcc-mingw-w64-x86-64-posix mingw-w64-x86-64-dev wine wine64" ;;
	portability-code) need="$need $build gcc clang gcc-powerpc64le-linux-gnu libc6-dev-ppc64el-cross gcc-aarch64-linux-gnu libc6-dev-arm64-cross gcc-arm-linux-gnueabihf libc6-dev-armhf-cross gcc-s390x-linux-gnu libc6-dev-s390x-cross gcc-powerpc64-linux-gnu libc6-dev-ppc64-cross" ;;
	*) echo "deps.sh: unknown purpose '$purpose'" >&2; exit 2 ;;
	esac
done

missing=
for p in $need; do
	dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
done
[ -z "$missing" ] && exit 0
echo "installing:$missing" >&2
sudo=
[ "$(id -u)" -eq 0 ] || sudo=sudo
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086  # a list of words on purpose
$sudo apt-get update -qq && $sudo apt-get install -y -qq --no-install-recommends $missing >&2
