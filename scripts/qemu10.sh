#!/bin/sh
# SPDX-License-Identifier: MIT
# A newer QEMU beside the system's: qemu-system-x86 of bookworm-backports, unpacked and never
# installed. It runs on Debian 12's libraries.
#
#     scripts/qemu10.sh [--offline]
#
# Prints the folder it is in, build/qemu10; what is there is used, without the network. The mirror is
# the one that apt has bookworm from, and apt checks the signatures, with lists of its own. Fails with
# a message where there is none (no network, another release).
set -eu
cd "$(dirname "$0")/.."
folder=$PWD/build/qemu10

fetch() {
	# shellcheck disable=SC2016  # apt's variables
	mirror=$(apt-get indextargets --format '$(SITE) $(CODENAME) $(COMPONENT)' 2>/dev/null |
		awk '$2 == "bookworm" && $3 == "main" { print $1; exit }')
	if [ -z "$mirror" ]; then
		echo "qemu10.sh: apt has no source for bookworm here" >&2
		return 1
	fi
	part=$folder.part
	rm -rf "$part"
	mkdir -p "$part/lists/partial" "$part/archives/partial"
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm-backports main" \
		>"$part/sources.list"
	set -- -qq -o "Dir::Etc::SourceList=$part/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o "Dir::State::Lists=$part/lists" -o "Dir::Cache=$part" -o Dir::Cache::pkgcache= \
		-o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root -o Acquire::Languages=none \
		-o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20
	(
		cd "$part" && apt-get "$@" update >&2 &&
			apt-get "$@" download qemu-system-x86 qemu-system-data qemu-system-common >&2 &&
			for deb in *.deb; do dpkg -x "$deb" . || exit; done &&
			rm -rf ./*.deb lists archives sources.list
	) && "$part/usr/bin/qemu-system-x86_64" --version >&2 && mv "$part" "$folder" && return
	echo "qemu10.sh: qemu-system-x86 of bookworm-backports cannot be had from $mirror, or does not run" >&2
	rm -rf "$part"
	return 1
}

if [ ! -d "$folder" ]; then
	[ "${1:-}" != --offline ] || exit 1
	fetch
fi
echo "$folder"
