# SPDX-License-Identifier: MIT
# Write each ```c block of a Markdown file to OUT/snippet-N.c (-v out=OUT -v n=FIRST). A block
# without main() is the body of a function.
/^```c$/ { inside = 1; body = ""; line = FNR; next }
/^```$/ && inside {
	inside = 0; f = out "/snippet-" ++n ".c"
	printf "#include <guestram/guestram.h>\n#include <stdio.h>\n#include <string.h>\n" > f
	if (body ~ /int main\(/)
		printf "#line %d \"%s\"\n%s", line + 1, FILENAME, body > f
	else
		printf "void snippet(void);\nvoid snippet(void)\n{\n#line %d \"%s\"\n%s}\n", line + 1, FILENAME, body > f
	close(f); next
}
inside { body = body $0 "\n" }
END { print n + 0 }
