/* SPDX-License-Identifier: MIT */
#include "image/format.h"
#include <errno.h>
#include <stdlib.h>

/* A cursor over bytes that are already here; fail is sticky. */
struct cursor {
	const uint8_t *data;
	size_t n;
	size_t at;
	bool fail; /* something was beyond the end */
};

static const uint8_t *take(struct cursor *c, size_t n)
{
	const uint8_t *p = c->data + c->at;

	if (c->fail || n > c->n - c->at) {
		c->fail = true;
		return NULL;
	}
	c->at += n;
	return p;
}

static uint32_t take_be32(struct cursor *c)
{
	const uint8_t *p = take(c, 4);

	return p ? gr_get_be32(p) : 0;
}

static bool is(const uint8_t *p, size_t n, const char *text)
{
	return p && n == strlen(text) && memcmp(p, text, n) == 0;
}

static int cut_off(const struct cursor *c, struct gr_error *err)
{
	return gr_error_set(err, -EBADMSG, "byte %zu: the configuration section is cut off", c->at);
}

static int parse_capabilities(struct cursor *c, struct gr_image_config *config,
			      struct gr_error *err)
{
	size_t at = c->at;
	uint32_t n = take_be32(c);

	if (n > GR_IMAGE_CAPABILITIES_MAX) {
		return gr_error_set(err, -EBADMSG,
				    "byte %zu: %u capabilities, at most %d are possible", at, n,
				    GR_IMAGE_CAPABILITIES_MAX);
	}
	for (uint32_t i = 0; i < n; i++) {
		const uint8_t *len = take(c, 1);
		const uint8_t *name = len ? take(c, *len) : NULL;

		if (!name) {
			return cut_off(c, err);
		}
		/* Each capability that has to be told changes what the stream looks like. */
		if (!is(name, *len, GR_IMAGE_CAPABILITY)) {
			return gr_error_set(err, -EOPNOTSUPP,
					    "byte %zu: capability '%.*s' is not supported", at,
					    *len, (const char *)name);
		}
		config->mapped = true;
	}
	return 0;
}

static int parse_page_bits(struct cursor *c, struct gr_image_config *config, struct gr_error *err)
{
	size_t at = c->at;
	uint32_t bits = take_be32(c);

	if (c->fail) {
		return cut_off(c, err);
	}
	if (bits < GR_STREAM_PAGE_BITS_MIN || bits > GR_STREAM_PAGE_BITS_MAX) {
		return gr_error_set(err, -EBADMSG, "byte %zu: pages of 2^%u bytes", at, bits);
	}
	config->page_bytes = UINT32_C(1) << bits;
	return 0;
}

/* One subsection; c stands at its 05. */
static int parse_subsection(struct cursor *c, struct gr_image_config *config, struct gr_error *err)
{
	size_t at = c->at;
	const uint8_t *head = take(c, 2);
	const uint8_t *name = head ? take(c, head[1]) : NULL;
	uint32_t version = take_be32(c);
	int rc = 0;

	if (c->fail) {
		return cut_off(c, err);
	}
	if (version != 1) {
		return gr_error_set(err, -EOPNOTSUPP, "byte %zu: subsection '%.*s' has version %u",
				    at, head[1], (const char *)name, version);
	}
	if (is(name, head[1], "configuration/target-page-bits")) {
		rc = parse_page_bits(c, config, err);
	} else if (is(name, head[1], "configuration/capabilities")) {
		if (config->capabilities_bytes != 0) {
			return gr_error_set(err, -EBADMSG, "byte %zu: capabilities twice", at);
		}
		rc = parse_capabilities(c, config, err);
		config->capabilities_at = at;
		config->capabilities_bytes = c->at - at;
	} else if (is(name, head[1], "configuration/uuid")) {
		(void)take(c, 16);
	} else {
		return gr_error_set(err, -EOPNOTSUPP, "byte %zu: unknown subsection '%.*s'", at,
				    head[1], (const char *)name);
	}
	if (rc == 0 && c->fail) {
		return cut_off(c, err);
	}
	return rc;
}

static int parse_machine(struct cursor *c, struct gr_image_config *config, struct gr_error *err)
{
	size_t at = c->at;
	uint32_t n = take_be32(c);
	const uint8_t *name;

	if (n > GR_STREAM_MACHINE_BYTES_MAX) {
		return gr_error_set(err, -EBADMSG, "byte %zu: a machine name of %u bytes", at, n);
	}
	name = take(c, n);
	if (!name) {
		return cut_off(c, err);
	}
	memcpy(config->machine, name, n);
	config->machine[n] = '\0';
	return 0;
}

int gr_image_config_parse(const uint8_t *data, size_t n, struct gr_image_config *config,
			  struct gr_error *err)
{
	struct gr_image_config result = { .page_bytes = 1u << GR_STREAM_PAGE_BITS_MIN };
	struct cursor c = { .data = data, .n = n };
	uint32_t magic = take_be32(&c);
	uint32_t version = take_be32(&c);
	int rc;

	if (c.fail || magic != GR_STREAM_MAGIC) {
		return gr_error_set(err, -EBADMSG, "byte 0: not a migration stream");
	}
	if (version != GR_STREAM_VERSION) {
		return gr_error_set(err, -EOPNOTSUPP,
				    "byte 4: migration stream of version %u, not %u", version,
				    GR_STREAM_VERSION);
	}
	/* send-configuration=off: no section; machine and subsections are not known */
	if (c.at < n && data[c.at] == GR_SECTION_CONFIGURATION) {
		c.at++;
		rc = parse_machine(&c, &result, err);
		if (rc < 0) {
			return rc;
		}
		result.has_section = true;
		/* no section's code is 05 on this level, so a 05 is a subsection of ours */
		while (c.at < n && data[c.at] == GR_SECTION_SUBSECTION) {
			rc = parse_subsection(&c, &result, err);
			if (rc < 0) {
				return rc;
			}
		}
	}
	result.bytes = c.at;
	*config = result;
	return 0;
}

/* "mapped-ram" as the only capability: the whole subsection. */
static size_t put_capabilities(uint8_t *p)
{
	static const char name[] = "configuration/capabilities";
	uint8_t *w = p;

	*w++ = GR_SECTION_SUBSECTION;
	*w++ = sizeof(name) - 1;
	memcpy(w, name, sizeof(name) - 1);
	w += sizeof(name) - 1;
	gr_put_be32(w, 1);     /* version */
	gr_put_be32(w + 4, 1); /* how many */
	w += 8;
	*w++ = sizeof(GR_IMAGE_CAPABILITY) - 1;
	memcpy(w, GR_IMAGE_CAPABILITY, sizeof(GR_IMAGE_CAPABILITY) - 1);
	w += sizeof(GR_IMAGE_CAPABILITY) - 1;
	return (size_t)(w - p);
}

enum { CAPABILITIES_BYTES = 64 }; /* enough for what put_capabilities() writes */

int gr_image_config_rewrite(const uint8_t *data, const struct gr_image_config *config, bool mapped,
			    uint8_t **ret_data, size_t *ret_bytes, struct gr_error *err)
{
	size_t cut = config->capabilities_bytes != 0 ? config->capabilities_at : config->bytes;
	size_t rest = cut + config->capabilities_bytes;
	uint8_t *out = malloc(config->bytes + CAPABILITIES_BYTES);
	size_t n = cut;

	if (!out) {
		return gr_error_set(err, -ENOMEM, "out of memory");
	}
	memcpy(out, data, cut);
	/* No configuration section: a receiver of such a machine looks for none either. */
	if (mapped && config->has_section) {
		n += put_capabilities(out + n);
	}
	memcpy(out + n, data + rest, config->bytes - rest);
	n += config->bytes - rest;
	if (n > GR_STREAM_CONFIG_BYTES_MAX) {
		free(out);
		return gr_error_set(err, -EFBIG, "a configuration section of %zu bytes", n);
	}
	*ret_data = out;
	*ret_bytes = n;
	return 0;
}

int gr_image_layout(uint64_t at, uint32_t page_bytes, struct gr_image_place *places, size_t n,
		    uint64_t *ret_end, struct gr_error *err)
{
	uint64_t limit = INT64_MAX - GR_IMAGE_ALIGN_BYTES;

	for (size_t i = 0; i < n; i++) {
		struct gr_image_place *p = &places[i];
		uint64_t align = p->used_bytes >= GR_IMAGE_ALIGN_FROM_BYTES
					 ? (uint64_t)GR_IMAGE_ALIGN_BYTES
					 : page_bytes;
		uint64_t end;

		p->header_at = at;
		p->bitmap_at = at + 1 + strlen(p->id) + 8 + GR_IMAGE_MAPPED_HEADER_BYTES;
		end = p->bitmap_at + gr_image_bitmap_bytes(p->used_bytes, page_bytes);
		if (i == 0) {
			end += GR_IMAGE_STAMP_BYTES;
		}
		p->pages_at = GR_ROUND_UP(end, align);
		/* used_bytes is at most GR_STREAM_BLOCK_BYTES_MAX: no sum here wraps */
		at = p->pages_at + p->used_bytes;
		if (at > limit) {
			return gr_error_set(err, -EFBIG, "block '%s' ends beyond any file", p->id);
		}
	}
	*ret_end = at;
	return 0;
}
