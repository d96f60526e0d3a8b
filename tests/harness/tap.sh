# SPDX-License-Identifier: MIT
# shellcheck shell=sh disable=SC2034
# TAP for shell tests. Sets tmp, a folder that goes when the test ends. At the end: exit $bad.
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
n=0
bad=0

# report NAME: the last command's verdict is in $?, what it said in $tmp/out.
report() {
	verdict=$?
	n=$((n + 1))
	if [ $verdict -eq 0 ]; then
		echo "ok $n - $1"
	else
		bad=1
		sed 's/^/# /' "$tmp/out"
		echo "not ok $n - $1"
	fi
}

# skip NAME WHY
skip() {
	n=$((n + 1))
	echo "ok $n - $1 # SKIP $2"
}
