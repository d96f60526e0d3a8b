# SPDX-License-Identifier: MIT
# Fail when a file includes a layer it may not: check-layers.awk $(git ls-files 'src/*.[ch]' ...)
BEGIN {
	allow["base"]    = "base"
	allow["rcu"]     = "base rcu"
	allow["loop"]    = "base rcu loop"
	allow["bitmap"]  = "base rcu bitmap"
	allow["ram"]     = "base rcu bitmap ram"
	allow["track"]   = "base rcu bitmap ram track"
	allow["stream"]  = "base stream"
	allow["migrate"] = "base rcu bitmap ram track stream migrate"
	allow["image"]   = "base rcu bitmap ram track stream migrate image"
	# The customers of the library: public headers and their own files, nothing of src/.
	allow["vmm"]     = "vmm guest"
	allow["tool"]    = "vmm tool"
	allow["bench"]   = "bench guest"
	allow["examples"] = ""
}
match($0, /^#[ \t]*include[ \t]+"[a-z]+\//) {
	n = split(FILENAME, f, "/")
	for (i = 1; i <= n; i++)
		if (f[i] == "src" || f[i] in allow) break
	here = f[i] == "src" ? f[i + 1] : f[i]
	to = $0; sub(/^[^"]*"/, "", to); sub(/\/.*/, "", to)
	if (index(" " allow[here] " ", " " to " ") == 0) {
		printf "%s:%d: %s may not include %s\n", FILENAME, FNR, here, to; bad = 1
	}
}
END { exit bad }
