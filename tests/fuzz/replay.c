/* SPDX-License-Identifier: MIT */
/* Runs a fuzz target over the files of a folder, and over every prefix and some bit flips
 * of the small ones: a test that needs no fuzzer. */
#include "fuzz.h"
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { INPUT_BYTES_MAX = 1 << 20, PREFIXES = 300, FLIPS = 300 };

static size_t read_file(const char *folder, const char *name, uint8_t *buf)
{
	char path[4096];
	size_t n;
	FILE *f;

	(void)snprintf(path, sizeof(path), "%s/%s", folder, name);
	f = fopen(path, "rb");
	if (!f) {
		perror(path);
		exit(1);
	}
	n = fread(buf, 1, INPUT_BYTES_MAX, f);
	(void)fclose(f);
	return n;
}

/* In memory of exactly its length, so that a sanitizer sees a read beyond it. */
static void run(const uint8_t *data, size_t n)
{
	uint8_t *copy = malloc(n ? n : 1);

	if (!copy) {
		exit(1);
	}
	memcpy(copy, data, n);
	(void)LLVMFuzzerTestOneInput(copy, n);
	free(copy);
}

static void run_damaged(uint8_t *data, size_t n)
{
	size_t step = n / PREFIXES + 1, bit_step = n * 8 / FLIPS + 1;

	for (size_t cut = 0; cut < n; cut += step) {
		run(data, cut);
	}
	for (size_t bit = 0; bit < n * 8; bit += bit_step) {
		data[bit / 8] ^= (uint8_t)(1u << bit % 8);
		run(data, n);
		data[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
}

static int is_input(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

int main(int argc, char **argv)
{
	uint8_t *buf = malloc(INPUT_BYTES_MAX);
	struct dirent **entries;
	int count;

	if (argc != 2 || !buf) {
		(void)fprintf(stderr, "usage: replay FOLDER\n");
		return 2;
	}
	count = scandir(argv[1], &entries, is_input, alphasort);
	if (count <= 0) {
		perror(argv[1]);
		return 2;
	}
	(void)printf("1..%d\n", count);
	for (int i = 0; i < count; i++) {
		size_t n = read_file(argv[1], entries[i]->d_name, buf);

		run(buf, n);
		run_damaged(buf, n);
		(void)printf("ok %d - %s\n", i + 1, entries[i]->d_name);
		(void)fflush(stdout);
		free(entries[i]);
	}
	free(entries);
	free(buf);
	return 0;
}
