/* SPDX-License-Identifier: MIT */
/*
 * The stream reader. The first byte says how: bit 0 own peers' records, bits 1..3 the size
 * of the pieces that the bytes come in, bit 4 further channels, bit 5
 * x-ignore-shared. The rest is the stream. It is parsed twice, once
 * through staged pages and once without, but with ranges into memory, in different pieces: both must deliver the same
 * and end in the same way. What a record promises is checked by the kit.
 */
#include "fuzz.h"
#include "stream_kit.h"
#include <errno.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static const size_t pieces[8] = { 0, 61, 997, 4103, 4104, 4105, 12000, 300 };
	struct kit_source staged, plain;
	struct kit_trace a, b;
	int flags;

	if (n == 0) {
		return 0;
	}
	flags = (data[0] & 1 ? KIT_EXTENSIONS : 0) | (data[0] & 16 ? KIT_FLUSH : 0) |
		(data[0] & 32 ? KIT_SHARED : 0);
	staged = (struct kit_source){ .data = data + 1, .n = n - 1 };
	plain = staged;
	staged.piece_max = pieces[data[0] >> 1 & 7];
	plain.piece_max = pieces[(data[0] >> 1 & 7) ^ 1];
	a = kit_trace(&staged, flags);
	b = kit_trace(&plain, flags | KIT_NO_STAGING | KIT_MEMORY);
	kit_check(a.rc == b.rc);
	kit_check(strcmp(a.err.msg, b.err.msg) == 0);
	/* Of a range that breaks off each has delivered the pieces that were complete, and theirs differ. */
	kit_check((a.rc == -EPIPE && flags & KIT_EXTENSIONS) ||
		  (a.hash == b.hash && a.pages == b.pages));
	return 0;
}
