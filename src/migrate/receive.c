/* SPDX-License-Identifier: MIT */
/*
 * The receive loop. The one promise that others build on: the source hears SHUT 0 only
 * after everything has come, the tail was complete and the sink's finish() has succeeded;
 * and if the SHUT could not be written the migration has failed here too.
 */
#include "migrate/receive.h"
#include "migrate/multifd_receive.h"
#include "migrate/progress.h"
#include "stream/channel.h"
#include "stream/return_path.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STRANGE_END_MS = 3000 };

struct gr_receive {
	struct gr_channel *channel;	 /* (c) borrowed */
	struct gr_sink sink;		 /* (c) */
	struct gr_receive_params params; /* (c) */
	char *machine;			 /* (c) what params.machine points to */
	uint8_t uuid[GR_STREAM_UUID_BYTES]; /* (c) what params.uuid points to */
	struct gr_stream_reader *reader; /* (o) */
	struct gr_progress progress;	 /* its own locking */
	struct gr_tail tail;		 /* (o) */
	struct gr_error error;		 /* (o) the first one */
	uint8_t *page;			 /* (o) one page, for fill bytes and differences */
	uint32_t page_bytes;		 /* (o) of the stream */
	struct gr_multifd_receive *multifd; /* further channels; NULL: none */
	bool flushes;			 /* (o) the source says when they are to be in step */
	bool multifd_over;		 /* (o) they have brought all their pages */
	bool met;			 /* (o) in the section that is open they were */
	bool return_path;		 /* (o) the source has opened it */
	bool ours;			 /* (o) FEATURES was sent */
	bool ready;			 /* (o) SWITCHOVER_ACK was sent */
	bool blocks_wait;		 /* (o) the list came, the announcement not yet */
	bool done;			 /* (o) */
};

/* Where the bytes of a range may be read at once. */
static uint8_t *page_memory(void *opaque, struct gr_stream_block *block, uint64_t offset)
{
	struct gr_receive *r = opaque;
	const struct gr_sink_ops *ops = r->sink.ops;

	if (!ops->parallel || !ops->page_memory || r->blocks_wait || !block->user) {
		return NULL;
	}
	return ops->page_memory(r->sink.opaque, block, offset);
}

static void torn(void *opaque, struct gr_stream_block *block, uint64_t offset, uint64_t bytes)
{
	struct gr_receive *r = opaque;

	r->sink.ops->torn(r->sink.opaque, block, offset, bytes);
}

static bool stores_only(void *opaque, struct gr_stream_block *block)
{
	struct gr_receive *r = opaque;

	return r->sink.ops->stores_only && r->sink.ops->stores_only(r->sink.opaque, block);
}

int gr_receive_create(struct gr_channel *channel, const struct gr_sink *sink,
		      const struct gr_receive_params *params, struct gr_receive **ret_receive,
		      struct gr_error *err)
{
	struct gr_stream_source source = gr_stream_source_channel(channel);
	struct gr_receive *r = calloc(1, sizeof(*r));
	int rc;

	if (!r) {
		return gr_error_set(err, -ENOMEM, "no memory to receive");
	}
	r->channel = channel;
	r->sink = *sink;
	if (params) {
		r->params = *params;
	}
	if (r->params.uuid) {
		memcpy(r->uuid, r->params.uuid, sizeof(r->uuid));
		r->params.uuid = r->uuid;
	}
	gr_progress_init(&r->progress);
	gr_tail_init(&r->tail, r->params.tail_bytes_max);
	if (r->params.machine) {
		r->machine = strdup(r->params.machine);
		if (!r->machine) {
			gr_receive_free(r);
			return gr_error_set(err, -ENOMEM, "no memory to receive");
		}
		r->params.machine = r->machine;
	}
	rc = gr_stream_reader_create(&source, &r->reader, err);
	if (rc == 0 && r->params.ignore_shared) {
		gr_stream_reader_allow_ignore_shared(r->reader);
	}
	if (rc == 0) {
		struct gr_stream_memory memory = { page_memory, torn, stores_only, r };

		gr_stream_reader_set_memory(r->reader, &memory);
	}
	if (rc == 0 && r->params.multifd) {
		gr_stream_reader_allow_flush(r->reader);
		rc = gr_multifd_receive_create(r->params.multifd, sink, channel, &r->progress,
					       &r->multifd, err);
	}
	if (rc < 0) {
		gr_receive_free(r);
		return rc;
	}
	*ret_receive = r;
	return 0;
}

void gr_receive_free(struct gr_receive *r)
{
	if (!r) {
		return;
	}
	gr_multifd_receive_free(r->multifd);
	gr_stream_reader_free(r->reader);
	gr_tail_destroy(&r->tail);
	gr_progress_destroy(&r->progress);
	free(r->machine);
	free(r->page);
	free(r);
}

void gr_receive_cancel(struct gr_receive *r)
{
	gr_progress_cancel(&r->progress, r->channel);
	if (r->multifd && gr_progress_cancelling(&r->progress)) {
		gr_multifd_receive_abort(r->multifd);
	}
}

void gr_receive_stats(struct gr_receive *r, struct gr_migrate_stats *ret_stats)
{
	gr_progress_snapshot(&r->progress, ret_stats);
}

struct gr_stream_reader *gr_receive_reader(struct gr_receive *r)
{
	return r->reader;
}

enum { UUID_TEXT_BYTES = 37 };

static const char *uuid_text(const uint8_t *uuid, char *text)
{
	int at = 0;

	for (int i = 0; i < GR_STREAM_UUID_BYTES; i++) {
		at += snprintf(text + at, (size_t)(UUID_TEXT_BYTES - at), "%s%02x",
			       i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
	}
	return text;
}

static int take_config(struct gr_receive *r, const struct gr_stream_record *rec,
		       struct gr_error *err)
{
	if (r->machine && strcmp(r->machine, rec->config.machine) != 0) {
		return gr_error_set(err, -EINVAL,
				    "the stream is of machine '%s', this is machine '%s'",
				    rec->config.machine, r->machine);
	}
#ifndef GR_MUTANT_RECEIVE_ANY_UUID
	if (r->params.uuid && rec->config.has_uuid &&
	    memcmp(r->uuid, rec->config.uuid, sizeof(r->uuid)) != 0) {
		char theirs[UUID_TEXT_BYTES], ours[UUID_TEXT_BYTES];

		return gr_error_set(err, -EINVAL, "the stream is of the machine with UUID %s, this is %s",
				    uuid_text(rec->config.uuid, theirs), uuid_text(r->uuid, ours));
	}
#endif
#ifndef GR_MUTANT_RECEIVE_SHARED_ON_ONE_SIDE
	if (r->params.ignore_shared && !rec->config.ignore_shared) {
		return gr_error_set(err, -EINVAL,
				    "the capability '%s' is on here and not at the source: it would send "
				    "what is shared",
				    GR_CAPABILITY_IGNORE_SHARED);
	}
#endif
	r->page_bytes = rec->config.page_bytes;
	r->page = malloc(r->page_bytes);
	if (!r->page) {
		return gr_error_set(err, -ENOMEM, "no memory for a page");
	}
	if (r->sink.ops->config) {
		int rc = r->sink.ops->config(r->sink.opaque, rec, err);

		if (rc < 0) {
			return rc;
		}
	}
	return r->multifd ? gr_multifd_receive_start(r->multifd, r->page_bytes, err) : 0;
}

static int answer(struct gr_receive *r, enum gr_return_path_type type, uint32_t value,
		  struct gr_error *err)
{
	struct gr_return_path_message msg = { .type = type, .value = value };

	return gr_return_path_write(r->channel, &msg, err);
}

/* As a QEMU: at once if nobody has to be asked. */
static int tell_if_ready(struct gr_receive *r, struct gr_error *err)
{
	if (!(r->params.switchover_ack || r->ours) || r->ready || !r->return_path ||
	    (r->params.switchover_ready && !r->params.switchover_ready(r->params.opaque))) {
		return 0;
	}
	r->ready = true;
	return answer(r, GR_RETURN_SWITCHOVER_ACK, 0, err);
}

static int take_command(struct gr_receive *r, const struct gr_stream_record *rec,
			struct gr_error *err)
{
	uint32_t value;
	int rc;

	if (rec->command.command == GR_COMMAND_OPEN_RETURN_PATH) {
		/* A source may ask on a channel that leads one way only; it waits in vain. */
		r->return_path = gr_channel_is_duplex(r->channel);
		return tell_if_ready(r, err);
	}
	if (rec->command.command != GR_COMMAND_PING || rec->command.data_bytes != 4 ||
	    !r->return_path) {
		return 0;
	}
	value = gr_get_be32(rec->command.data);
	if (value == GR_PING_FEATURES && !r->params.plain) {
		struct gr_return_path_message features = { .type = GR_RETURN_FEATURES,
							   .value = 1,
							   .flags = GR_FEATURE_PAGE_RANGE |
								    GR_FEATURE_FILE_IDENTITY };

		/* Before the PONG: a source that has the PONG knows what we are. */
		rc = gr_return_path_write(r->channel, &features, err);
		if (rc < 0) {
			return rc;
		}
		gr_stream_reader_allow_extensions(r->reader);
		r->ours = true;
		rc = tell_if_ready(r, err);
		if (rc < 0) {
			return rc;
		}
	}
	return answer(r, GR_RETURN_PONG, value, err);
}

static int give_blocks(struct gr_receive *r, struct gr_error *err)
{
	int rc;

	r->blocks_wait = false;
	rc = r->sink.ops->blocks(r->sink.opaque, r->reader, err);
	if (rc == 0 && r->multifd) {
		rc = gr_multifd_receive_blocks(r->multifd, r->reader, err);
	}
	return rc;
}

/*
 * All channels have come to the same point: what was sent before it is in place, nothing behind it
 * has been looked at. A list of blocks that is new is taken over then.
 */
static int meet(struct gr_receive *r, bool new_blocks, struct gr_error *err)
{
	int rc = gr_multifd_receive_sync(r->multifd, err);

	if (rc == 0 && new_blocks) {
		rc = give_blocks(r, err);
	}
	if (rc == 0) {
		gr_multifd_receive_release(r->multifd);
		r->met = true;
	}
	return rc;
}

static int take_blocks(struct gr_receive *r, const struct gr_stream_record *rec,
		       struct gr_error *err)
{
	struct gr_migrate_stats *stats = gr_progress_lock(&r->progress);

	stats->total_bytes = rec->blocks.total_bytes;
	stats->peer_is_guestram = r->ours;
	if (rec->kind == GR_STREAM_ANNOUNCE) {
		stats->blocks_announced++;
	}
	gr_progress_unlock(&r->progress);
	if (rec->kind == GR_STREAM_BLOCKS) {
		if (!gr_progress_move(&r->progress, GR_MIGRATE_ACTIVE)) {
			return gr_error_set(err, -ECANCELED, "cancelled");
		}
		/* One of ours says the rest in the announcement, before this section ends. */
		if (r->ours) {
			r->blocks_wait = true;
			return 0;
		}
	}
	/* Ours meet at each announcement. */
	return r->multifd && rec->kind == GR_STREAM_ANNOUNCE ? meet(r, true, err)
							     : give_blocks(r, err);
}

/* Up to QEMU 8.0 the end of each section is where all meet; then it is what says FLUSH. */
static int take_flush(struct gr_receive *r, const struct gr_stream_record *rec, struct gr_error *err)
{
	if (rec->flush.at_eos && r->flushes) {
		return 0;
	}
	r->flushes |= !rec->flush.at_eos;
	return meet(r, r->blocks_wait, err);
}

/* Says where in the stream and in RAM the sink has failed. */
static int sink_failed(struct gr_receive *r, const struct gr_stream_record *rec, int rc,
		       uint32_t block, uint64_t offset, struct gr_error *err)
{
	gr_error_prefix(err,
			"byte %llu: block '%s', page %llu: ", (unsigned long long)rec->byte_offset,
			gr_stream_reader_block(r->reader, block)->id,
			(unsigned long long)(offset / r->page_bytes));
	return rc;
}

/* Threads of further channels call the sink, too. */
static void enter_sink(struct gr_receive *r)
{
#ifndef GR_MUTANT_RECEIVE_SINK_UNLOCKED
	if (r->multifd) {
		gr_multifd_receive_enter_sink(r->multifd);
	}
#endif
}

static void leave_sink(struct gr_receive *r)
{
#ifndef GR_MUTANT_RECEIVE_SINK_UNLOCKED
	if (r->multifd) {
		gr_multifd_receive_leave_sink(r->multifd);
	}
#endif
}

static int place_pages(struct gr_receive *r, struct gr_stream_block *block, uint32_t count,
		       const uint64_t *offsets, const uint8_t *data, uint32_t *ret_bad,
		       struct gr_error *err)
{
	int rc;

	enter_sink(r);
	rc = r->sink.ops->pages(r->sink.opaque, block, count, offsets, data, ret_bad, err);
	leave_sink(r);
	return rc;
}

static int take_pages(struct gr_receive *r, const struct gr_stream_record *rec,
		      struct gr_error *err)
{
	struct gr_stream_block *block = gr_stream_reader_block(r->reader, rec->pages.block);
	struct gr_migrate_stats *stats;
	uint32_t bad = 0;
	int rc;

	rc = place_pages(r, block, rec->pages.count, rec->pages.offsets, rec->pages.data, &bad,
			 err);
	if (rc < 0) {
		bad = GR_MIN(bad, rec->pages.count - 1);
		return sink_failed(r, rec, rc, rec->pages.block, rec->pages.offsets[bad], err);
	}
	stats = gr_progress_lock(&r->progress);
	stats->normal_pages += rec->pages.count;
	gr_progress_unlock(&r->progress);
	return 0;
}

static void take_stored(struct gr_receive *r, const struct gr_stream_record *rec)
{
	struct gr_stream_block *block = gr_stream_reader_block(r->reader, rec->stored.block);
	struct gr_migrate_stats *stats;

	r->sink.ops->stored(r->sink.opaque, block, rec->stored.offset, rec->stored.bytes);
	stats = gr_progress_lock(&r->progress);
	stats->normal_pages += rec->stored.bytes / r->page_bytes;
	gr_progress_unlock(&r->progress);
}

/* QEMU writes fill 0 only, but its format can say another byte: then it is pages. */
static int take_fill(struct gr_receive *r, const struct gr_stream_record *rec, struct gr_error *err)
{
	struct gr_stream_block *block = gr_stream_reader_block(r->reader, rec->zero.block);
	uint64_t end = rec->zero.offset + rec->zero.bytes;
	uint32_t bad = 0;
	int rc;

	memset(r->page, rec->zero.fill, r->page_bytes);
	for (uint64_t at = rec->zero.offset; at < end; at += r->page_bytes) {
		rc = place_pages(r, block, 1, &at, r->page, &bad, err);
		if (rc < 0) {
			return sink_failed(r, rec, rc, rec->zero.block, at, err);
		}
	}
	return 0;
}

static int take_zero(struct gr_receive *r, const struct gr_stream_record *rec, struct gr_error *err)
{
	struct gr_stream_block *block = gr_stream_reader_block(r->reader, rec->zero.block);
	struct gr_migrate_stats *stats;
	int rc;

	if (rec->zero.fill != 0) {
		rc = take_fill(r, rec, err);
		if (rc < 0) {
			return rc;
		}
	} else {
		enter_sink(r);
		rc = r->sink.ops->zero(r->sink.opaque, block, rec->zero.offset, rec->zero.bytes,
				       err);
		leave_sink(r);
		if (rc < 0) {
			return sink_failed(r, rec, rc, rec->zero.block, rec->zero.offset, err);
		}
	}
	stats = gr_progress_lock(&r->progress);
	stats->zero_pages += rec->zero.bytes / r->page_bytes;
	gr_progress_unlock(&r->progress);
	return 0;
}

static int take_xbzrle(struct gr_receive *r, const struct gr_stream_record *rec,
		       struct gr_error *err)
{
	struct gr_stream_block *block = gr_stream_reader_block(r->reader, rec->xbzrle.block);
	struct gr_migrate_stats *stats;
	uint64_t offset = rec->xbzrle.offset;
	uint32_t bad = 0;
	int rc;

	if (!r->sink.ops->page_read) {
		rc = gr_error_set(err, -EOPNOTSUPP, "a difference, but no page to apply it to");
		return sink_failed(r, rec, rc, rec->xbzrle.block, offset, err);
	}
	enter_sink(r);
	rc = r->sink.ops->page_read(r->sink.opaque, block, offset, r->page, err);
	leave_sink(r);
	if (rc == 0) {
		rc = gr_xbzrle_decode(r->page, rec->xbzrle.payload, rec->xbzrle.payload_bytes,
				      r->page_bytes);
		GR_ASSERT(rc == 0); /* the reader lets no other pass */
		rc = place_pages(r, block, 1, &offset, r->page, &bad, err);
	}
	if (rc < 0) {
		return sink_failed(r, rec, rc, rec->xbzrle.block, offset, err);
	}
	stats = gr_progress_lock(&r->progress);
	stats->xbzrle_pages++;
	gr_progress_unlock(&r->progress);
	return 0;
}

/* All pages have come. From here on no channel places anything. */
static int end_multifd(struct gr_receive *r, const struct gr_stream_record *rec,
		       struct gr_error *err)
{
	if (!r->met) {
		return gr_error_set(err, -EBADMSG,
				    "byte %llu: the RAM ends without MULTIFD_FLUSH: what the further "
				    "channels still have is not known",
				    (unsigned long long)rec->byte_offset);
	}
	gr_multifd_receive_end(r->multifd);
	r->multifd_over = true;
	return gr_multifd_receive_failed(r->multifd, err);
}

static int take_eos(struct gr_receive *r, const struct gr_stream_record *rec, struct gr_error *err)
{
	struct gr_migrate_stats *stats;
	int rc = 0;

	/* A source of ours that gave up waiting for us speaks QEMU's dialect: no announcement. */
	if (r->blocks_wait) {
		rc = give_blocks(r, err);
	}
	if (rc == 0 && r->multifd && rec->eos.section == GR_SECTION_END) {
		rc = end_multifd(r, rec, err);
	}
	r->met = false;
	if (rc < 0) {
		return rc;
	}
	stats = gr_progress_lock(&r->progress);
	if (rec->eos.section != GR_SECTION_START) {
		stats->rounds++;
	}
	gr_progress_unlock(&r->progress);
	return tell_if_ready(r, err);
}

/* Everything is in: judge, finish, acknowledge. */
static int finish(struct gr_receive *r, struct gr_error *err)
{
	int rc = gr_tail_finish(&r->tail, r->params.allow_unterminated, err);

	if (rc == 0 && r->multifd && !r->multifd_over) {
		rc = gr_error_set(err, -EBADMSG, "no end of RAM, with further channels");
	}
	if (gr_progress_state(&r->progress) == GR_MIGRATE_ACTIVE) {
		(void)gr_progress_move(&r->progress, GR_MIGRATE_DEVICE);
	}
	if (rc < 0) {
		gr_error_prefix(
			err, "byte %llu: ", (unsigned long long)gr_stream_reader_offset(r->reader));
		return rc;
	}
#ifdef GR_MUTANT_MIGRATE_SHUT_FIRST
	if (r->return_path) {
		(void)answer(r, GR_RETURN_SHUT, 0, NULL);
	}
#endif
	rc = r->sink.ops->finish(r->sink.opaque, &r->tail, err);
	if (rc < 0) {
		return rc;
	}
	if (gr_progress_cancelling(&r->progress)) {
		return gr_error_set(err, -ECANCELED, "cancelled");
	}
	if (r->return_path) {
		/* A cancel breaks the channel, so a SHUT that was written came before it. */
		rc = answer(r, GR_RETURN_SHUT, 0, err);
		if (rc < 0) {
			gr_error_prefix(err, "cannot tell the source that all is here: ");
			return rc;
		}
	}
	(void)gr_progress_move(&r->progress, GR_MIGRATE_COMPLETED);
	r->done = true;
	return 0;
}

/*
 * The end, or bytes in a device's state that look like it: then more comes. What the description
 * accounts for is believed as soon as nothing more is there; anything else when nothing has come
 * for a while, because not every tail that is whole can be accounted for.
 */
static bool is_over(struct gr_receive *r)
{
	if (!gr_tail_is_complete(&r->tail)) {
		return false;
	}
#ifdef GR_MUTANT_RECEIVE_TRUSTS_ANY_END
	return true;
#endif
	return !gr_channel_is_readable(r->channel,
				       gr_tail_is_accounted(&r->tail) ? 0 : STRANGE_END_MS);
}

static int take_tail(struct gr_receive *r, const struct gr_stream_record *rec, struct gr_error *err)
{
	int rc;

	if (r->tail.bytes == 0 && !gr_progress_move(&r->progress, GR_MIGRATE_DEVICE)) {
		return gr_error_set(err, -ECANCELED, "cancelled");
	}
	rc = gr_tail_append(&r->tail, rec->tail.data, rec->tail.bytes, err);
	if (rc < 0) {
		gr_error_prefix(err, "byte %llu: ", (unsigned long long)rec->byte_offset);
		return rc;
	}
	/* A source with a return path does not close before it has our answer. */
	if (r->return_path && is_over(r)) {
		return finish(r, err);
	}
	return 1;
}

/* Until the announcement has come the sink knows no block: the table has no users. */
static bool comes_too_early(const struct gr_receive *r, const struct gr_stream_record *rec)
{
	return r->blocks_wait && (rec->kind == GR_STREAM_PAGES || rec->kind == GR_STREAM_ZERO ||
				  rec->kind == GR_STREAM_XBZRLE);
}

static int refuse_early(struct gr_receive *r, const struct gr_stream_record *rec,
			struct gr_error *err)
{
	uint32_t block = rec->kind == GR_STREAM_PAGES  ? rec->pages.block
			 : rec->kind == GR_STREAM_ZERO ? rec->zero.block
						       : rec->xbzrle.block;

	return gr_error_set(
		err, -EBADMSG, "byte %llu: block '%s': bytes before the blocks were announced",
		(unsigned long long)rec->byte_offset, gr_stream_reader_block(r->reader, block)->id);
}

static int take(struct gr_receive *r, const struct gr_stream_record *rec, struct gr_error *err)
{
	if (comes_too_early(r, rec)) {
		return refuse_early(r, rec, err);
	}
	switch (rec->kind) {
	case GR_STREAM_CONFIG:
		return take_config(r, rec, err);
	case GR_STREAM_COMMAND:
		return take_command(r, rec, err);
	case GR_STREAM_RAM_START:
		return 0;
	case GR_STREAM_BLOCKS:
	case GR_STREAM_ANNOUNCE:
		return take_blocks(r, rec, err);
	case GR_STREAM_PAGES:
		return take_pages(r, rec, err);
	case GR_STREAM_STORED:
		take_stored(r, rec);
		return 0;
	case GR_STREAM_ZERO:
		return take_zero(r, rec, err);
	case GR_STREAM_XBZRLE:
		return take_xbzrle(r, rec, err);
	case GR_STREAM_EOS:
		return take_eos(r, rec, err);
	case GR_STREAM_FLUSH:
		return take_flush(r, rec, err);
	case GR_STREAM_TAIL:
	default:
		return gr_error_set(err, -EINVAL, "a record of an unknown kind");
	}
}

/* Keeps the first error; tells the source if that is still possible. */
static int fail(struct gr_receive *r, int rc, struct gr_error *err)
{
	if (r->multifd) {
		/* When a further channel fails, the main one's reading ends. */
		if (rc == -EPIPE || rc == -ECANCELED) {
			int further = gr_multifd_receive_failed(r->multifd, &r->error);

			rc = further < 0 ? further : rc;
		}
		gr_multifd_receive_break(r->multifd);
	}
	if (r->return_path && !gr_progress_cancelling(&r->progress)) {
		(void)answer(r, GR_RETURN_SHUT, 1, NULL);
	}
	/* A cancel may have come first, also while that answer waited for a peer that reads. */
	if (!gr_progress_move(&r->progress, GR_MIGRATE_FAILED)) {
		rc = gr_error_set(&r->error, -ECANCELED, "cancelled");
		(void)gr_progress_move(&r->progress, GR_MIGRATE_CANCELLED);
	}
	r->error.code = rc;
	if (err) {
		*err = r->error;
	}
	return rc;
}

int gr_receive_step(struct gr_receive *r, struct gr_error *err)
{
	struct gr_stream_record rec;
	struct gr_migrate_stats *stats;
	int rc;

	if (r->done) {
		return 0;
	}
	if (r->error.code < 0) {
		if (err) {
			*err = r->error;
		}
		return r->error.code;
	}
	if (gr_progress_state(&r->progress) == GR_MIGRATE_NONE) {
		(void)gr_progress_move(&r->progress, GR_MIGRATE_SETUP);
	}
	if (gr_progress_cancelling(&r->progress)) {
		return fail(r, -ECANCELED, err);
	}
	rc = r->multifd ? gr_multifd_receive_failed(r->multifd, &r->error) : 0;
	if (rc == 0) {
		rc = gr_stream_next(r->reader, &rec, &r->error);
	}
	if (rc > 0) {
		rc = rec.kind == GR_STREAM_TAIL ? take_tail(r, &rec, &r->error)
						: take(r, &rec, &r->error);
		rc = rc == 0 && !r->done ? 1 : rc;
	} else if (rc == 0) {
		rc = finish(r, &r->error);
	}
	if (rc < 0) {
		return fail(r, rc, err);
	}
	stats = gr_progress_lock(&r->progress);
	stats->transferred_bytes = gr_stream_reader_offset(r->reader) +
				   (r->multifd ? gr_multifd_receive_bytes(r->multifd) : 0);
	gr_progress_unlock(&r->progress);
	return rc;
}
