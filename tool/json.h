/* SPDX-License-Identifier: MIT */
/*
 * Writes one JSON object, indented, to a stdio stream. (Reading JSON is jansson's, whose
 * names begin with json_ too: json_put_ keeps ours apart.)
 *
 *     struct json j;
 *
 *     json_begin(&j, stdout);
 *     json_put_uint(&j, "ram_bytes", info.ram_bytes);
 *     json_put_array(&j, "blocks");
 *     for (...) {
 *             json_put_object(&j, NULL);        elements of an array have no key
 *             json_put_string(&j, "id", block.id);
 *             json_end(&j);
 *     }
 *     json_end(&j);
 *     json_end(&j);                         the object itself; writes the last newline
 *
 * Write errors stay in the stream: main() looks when the verb has returned.
 */
#ifndef TOOL_JSON_H
#define TOOL_JSON_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { JSON_DEPTH_MAX = 16 };

struct json {
	FILE *f;
	unsigned depth;
	bool array[JSON_DEPTH_MAX]; /* of each depth: '[' or '{' */
	bool empty[JSON_DEPTH_MAX]; /* of each depth: nothing written yet */
};

/** Begin the outer object. @param j The caller's memory. @param f Where to; borrowed. */
void json_begin(struct json *j, FILE *f);

/* key: NULL within an array, otherwise the member's name. */
void json_put_object(struct json *j, const char *key);
void json_put_array(struct json *j, const char *key);
/** End the innermost object or array. @param j The writer. */
void json_end(struct json *j);

/* A NULL string is written as null. */
void json_put_string(struct json *j, const char *key, const char *value);
void json_put_uint(struct json *j, const char *key, uint64_t value);
void json_put_int(struct json *j, const char *key, int64_t value);
void json_put_bool(struct json *j, const char *key, bool value);
/* Not finite: written as null, JSON knows no such number. */
void json_put_double(struct json *j, const char *key, double value);

#endif
