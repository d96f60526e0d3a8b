/* SPDX-License-Identifier: MIT */
/*
 * The return path as the source sees it. A QEMU answers our PING with a PONG; a guestram
 * says FEATURES before. Both say SHUT when they have everything or have failed.
 *
 * Once the whole stream is out and an answer is expected the destination alone decides: it may
 * have the guest already, and nothing that we do to the channel can tell (on TCP its SHUT
 * succeeds also after we have shut down both directions). So a cancel is an offer then: we say
 * that nothing more comes, and wait as before. SHUT 0: the guest runs over there, the cancel came
 * too late. Another SHUT or the end: it does not, and goes on here.
 */
#include "migrate/source.h"
#include <errno.h>
#include <poll.h>

int gr_source_ask_peer(struct gr_source *s, struct gr_error *err)
{
	int rc = gr_stream_write_command(s->writer, GR_COMMAND_OPEN_RETURN_PATH, NULL, 0, err);

	if (rc == 0) {
		rc = gr_stream_write_ping(s->writer, GR_PING_FEATURES, err);
	}
	if (rc == 0) {
		rc = gr_stream_flush(s->writer, err);
	}
	s->ping_ns = gr_clock_ns();
	return rc;
}

/* Whether the channel is ready, after at most so long. One without a descriptor waits by itself. */
static bool ready(struct gr_source *s, short events, uint64_t wait_ns)
{
	struct pollfd pfd = { .fd = gr_channel_fd(s->channel), .events = events };
	struct timespec wait = gr_timespec_from_ns(wait_ns);

	return pfd.fd < 0 || ppoll(&pfd, 1, &wait, NULL) > 0;
}

static int refused(uint32_t value, struct gr_error *err)
{
	return gr_error_set(err, -EREMOTEIO,
			    "the destination has failed (it says %u); see its own messages", value);
}

static int gone(struct gr_error *err)
{
	return gr_error_set(err, -EPIPE, "the destination has closed the connection");
}

/*
 * One message, after at most so long: 1, 0 not yet, or a negative errno. Reads at most once, and
 * only what is there: nobody could wake us when half a message came and no more.
 */
static int receive(struct gr_source *s, uint64_t wait_ns, struct gr_return_path_message *msg,
		   struct gr_error *err)
{
	struct gr_return_path_reader *r = &s->answers;
	struct iovec iov;
	ssize_t got;
	int rc;

	/* FEATURES and PONG often come together: the second one waits in our buffer. */
	if (gr_return_path_parse(r->buf, r->bytes, msg, NULL) == 0) {
		if (!ready(s, POLLIN, wait_ns)) {
			return 0;
		}
		iov = (struct iovec){ r->buf + r->bytes, sizeof(r->buf) - r->bytes };
		got = gr_channel_readv(s->channel, &iov, 1, err);
		if (got <= 0) {
			return got < 0 ? (int)got : gone(err);
		}
		r->bytes += (size_t)got;
		if (gr_return_path_parse(r->buf, r->bytes, msg, NULL) == 0) {
			return 0;
		}
	}
	rc = gr_return_path_next(r, s->channel, msg, err);
	/* It may come at any time, a QEMU's even before its PONG. */
	if (rc > 0 && msg->type == GR_RETURN_SWITCHOVER_ACK) {
		s->switchover_acked = true;
	}
	return rc;
}

bool gr_source_can_write(struct gr_source *s)
{
	return ready(s, POLLOUT, GR_PACING_SLICE_NS);
}

int gr_source_await_peer(struct gr_source *s, struct gr_error *err)
{
	struct gr_return_path_message msg;
	uint64_t now = gr_clock_ns();
	int rc;

	rc = receive(s, GR_PACING_SLICE_NS, &msg, err);
	if (rc < 0) {
		return rc;
	}
	if (rc == 0 && now - s->ping_ns < GR_SOURCE_PEER_NS) {
		return 1;
	}
	if (rc == 0) {
		/*
		 * To go on without its answer would not do: if it is only late it wants to say
		 * SHUT at the end, finds nobody, and does not start the guest.
		 */
		return gr_error_set(err, -ETIMEDOUT,
				    "%s: the destination has not answered for %u s; if it never does "
				    "(no QEMU, no guestram), the plain dialect is for it",
				    gr_channel_name(s->channel),
				    (unsigned int)(GR_SOURCE_PEER_NS / GR_NS_PER_S));
	}
	if (msg.type == GR_RETURN_SHUT) {
		return refused(msg.value, err);
	}
	if (msg.type == GR_RETURN_FEATURES) {
		s->ours = true;
		s->page_ranges = (msg.flags & GR_FEATURE_PAGE_RANGE) != 0;
		s->file_identity = (msg.flags & GR_FEATURE_FILE_IDENTITY) != 0;
#ifdef GR_MUTANT_SOURCE_FILES_UNASKED
		s->file_identity = true;
#endif
#ifdef GR_MUTANT_SOURCE_RANGES_UNASKED
		s->page_ranges = true;
#endif
	}
	if (msg.type == GR_RETURN_PONG && msg.value == GR_PING_FEATURES) {
		s->answer_expected = true;
		s->model.answer_ns = GR_MAX(s->params.expected.answer_ns, gr_clock_ns() - s->ping_ns);
		return 0;
	}
	return 1;
}

static int look_at_peer(struct gr_source *s, uint64_t wait_ns, struct gr_error *err)
{
	struct gr_return_path_message msg;
	int rc;

	if (!s->answer_expected || gr_channel_fd(s->channel) < 0) {
		return 0;
	}
	rc = receive(s, wait_ns, &msg, err);
	if (rc <= 0) {
		return rc;
	}
	return msg.type == GR_RETURN_SHUT ? refused(msg.value, err) : 0;
}

int gr_source_check_peer(struct gr_source *s, struct gr_error *err)
{
	return look_at_peer(s, 0, err);
}

int gr_source_wait_slice(struct gr_source *s, struct gr_error *err)
{
	struct timespec slice = gr_timespec_from_ns(GR_PACING_SLICE_NS);

	if (s->answer_expected && gr_channel_fd(s->channel) >= 0) {
		return look_at_peer(s, GR_PACING_SLICE_NS, err);
	}
	(void)clock_nanosleep(CLOCK_MONOTONIC, 0, &slice, NULL);
	return 0;
}

int gr_source_await_answer(struct gr_source *s, struct gr_error *err)
{
	struct gr_return_path_message msg;
	int rc;

	/* Also how the kernel finds out in the end that a host has vanished. */
	if (gr_progress_cancelling(&s->progress)) {
		gr_channel_end_writing(s->channel);
	}
	rc = receive(s, GR_PACING_SLICE_NS, &msg, err);
	if (rc <= 0) {
		return rc < 0 ? rc : 1;
	}
	if (msg.type != GR_RETURN_SHUT) {
		return 1;
	}
	return msg.value == 0 ? 0 : refused(msg.value, err);
}
