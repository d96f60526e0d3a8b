#!/bin/sh
# SPDX-License-Identifier: MIT
# Run a program where /dev/kvm works, on machines that have none: QEMU's TCG emulates AMD's
# SVM, so a Debian kernel booted there offers a real KVM, slow but right.
#
#     scripts/kvm-rig.sh [-f FILE]... PROGRAM [ARGUMENT...]
#
# PROGRAM, the libraries it needs and each FILE are copied into a memory-only system under
# their own absolute names. What it prints comes out here, its exit status is ours (124: it
# did not end in time). Nothing is installed: packages are unpacked into build-kvm-rig/.
# QEMU is a newer one where scripts/qemu10.sh has it, and KVM uses shadow paging: docs/testing.md says why.
# Environment: KVM_RIG_QEMU (the program), KVM_RIG_ACCEL (tcg,thread=multi), KVM_RIG_CPU (max), KVM_RIG_SMP (2),
# KVM_RIG_MEMORY (2G), KVM_RIG_SECONDS (300), KVM_RIG_KVM and KVM_RIG_KVM_AMD (module parameters, the latter's
# npt=0 unless set), and every GR_* is handed on.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
dir=$root/build-kvm-rig

die() { echo "kvm-rig: $*" >&2; exit 2; }

fetch() { # the newest kernel of the suite and a static shell, unpacked
	image=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
		sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
	[ -n "$image" ] || die "apt knows no linux-image-cloud-amd64; run apt-get update"
	(cd "$dir" && apt-get download -qq "$image" busybox-static) || die "cannot fetch $image"
	for deb in "$dir"/*.deb; do
		dpkg -x "$deb" "$dir/system"
		rm "$deb"
	done
	mv "$dir/system" "$dir/system.done"
}

copy() { # FILE: into the new root under its own name
	mkdir -p "$tree$(dirname "$1")"
	cp -L "$1" "$tree$1"
}

files=
while getopts f: opt; do
	case "$opt" in
	f) files="$files $(realpath "$OPTARG")" ;;
	*) die "usage: kvm-rig.sh [-f FILE]... PROGRAM [ARGUMENT...]" ;;
	esac
done
shift $((OPTIND - 1))
[ $# -ge 1 ] || die "which program?"
program=$(realpath -e "$1") || die "no program $1"
shift

mkdir -p "$dir"
( # two runs at once fetch once
	flock 9
	"$root/scripts/qemu10.sh" >/dev/null || echo "kvm-rig: with the QEMU that is installed" >&2
	[ -d "$dir/system.done" ] || fetch
) 9>"$dir/lock"

qemu() {
	new=$root/build/qemu10/usr
	if [ -z "${KVM_RIG_QEMU:-}" ] && [ -d "$new" ]; then
		timeout "${KVM_RIG_SECONDS:-300}" "$new/bin/qemu-system-x86_64" -L "$new/share/qemu" "$@"
	else
		timeout "${KVM_RIG_SECONDS:-300}" "${KVM_RIG_QEMU:-qemu-system-x86_64}" "$@"
	fi
}

system=$dir/system.done
busybox=$system/bin/busybox
work=$(mktemp -d "$dir/run.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
tree=$work/tree
mkdir -p "$tree/bin" "$tree/proc" "$tree/sys" "$tree/dev" "$tree/tmp" "$tree/modules"
cp "$busybox" "$tree/bin/busybox"
for m in irqbypass kvm kvm-amd; do
	find "$system" -name "$m.ko" -exec cp {} "$tree/modules/" \;
done
# shellcheck disable=SC2086  # a list of files on purpose
for f in "$program" $files; do
	copy "$f"
	ldd "$f" 2>/dev/null | grep -o '/[^ ]*' | while read -r lib; do copy "$lib"; done
done

{
	echo '#!/bin/busybox sh'
	echo '/bin/busybox --install -s /bin'
	echo 'mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev'
	echo 'mkdir -p /dev/shm; mount -t tmpfs shm /dev/shm'
	echo 'ip link set lo up'
	echo 'stty -F /dev/ttyS1 raw; echo 1 > /proc/sys/kernel/panic'
	echo 'insmod /modules/irqbypass.ko'
	echo "insmod /modules/kvm.ko ${KVM_RIG_KVM:-}"
	echo "insmod /modules/kvm-amd.ko ${KVM_RIG_KVM_AMD-npt=0}"
	# Some hundred times slower, on a busy machine more: slow is no hang.
	echo "export GR_TEST_TIMEOUT=240"
	env | sed -n "s/'/'\\\\''/g; s/^\(GR_[A-Z0-9_]*\)=\(.*\)/export \1='\2'/p"
	printf "'%s'" "$program"
	for a in "$@"; do
		printf " '%s'" "$(printf '%s' "$a" | sed "s/'/'\\\\''/g")"
	done
	echo ' </dev/null >/dev/ttyS1 2>&1'
	echo 'echo "kvm-rig: exit $?" >/dev/ttyS1'
	echo 'sleep 0.2; reboot -f'
} >"$tree/init"
chmod +x "$tree/init"
(cd "$tree" && find . | "$busybox" cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initrd"

# no_timer_check: the kernel counts ticks for a moment and panics when a busy machine gave it none.
kernel=$(echo "$system"/boot/vmlinuz-*)
status=0
{
	ended=0
	qemu -accel "${KVM_RIG_ACCEL:-tcg,thread=multi}" \
		-cpu "${KVM_RIG_CPU:-max}" -smp "${KVM_RIG_SMP:-2}" -m "${KVM_RIG_MEMORY:-2G}" \
		-nodefaults -no-user-config -display none -monitor none -no-reboot \
		-serial "file:$work/console" -serial stdio -kernel "$kernel" \
		-initrd "$work/initrd" \
		-append "console=ttyS0 loglevel=6 panic=-1 mitigations=off no_timer_check" </dev/null || ended=$?
	echo "$ended" >"$work/qemu"
} | tee "$work/out" | grep --line-buffered -v '^kvm-rig: exit ' || true
status=$(sed -n 's/^kvm-rig: exit \([0-9]*\).*/\1/p' "$work/out")
if [ -z "$status" ]; then
	echo "kvm-rig: it did not end (QEMU: $(cat "$work/qemu"); 124: no time left," \
		"0: the machine reset, a fault of its kernel); the kernel's last words:" >&2
	tail -n 40 "$work/console" >&2
	exit 124
fi
[ -z "${KVM_RIG_VERBOSE:-}" ] || cat "$work/console" >&2
exit "$status"
