/* SPDX-License-Identifier: MIT */
/*
 * The return path as the source sees it. A QEMU answers our PING with a PONG; a guestram
 * says FEATURES before. Both say SHUT when they have everything or have failed.
 *
 * Cancelling while the answer is awaited: the destination may have the guest already. So the
 * channel is broken first (nothing new can come after that) and what is in it is read to
 * the end: a SHUT 0 found there means that the guest runs over there, and the cancel came too
 * late. Otherwise the destination's SHUT fails, and it does not start the guest.
 */
#include "migrate/source.h"
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

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

/* Whether a message can be read, after at most so long. */
static bool readable(struct gr_source *s, uint64_t wait_ns)
{
	struct pollfd pfd = { .fd = gr_channel_fd(s->channel), .events = POLLIN };
	struct timespec wait = gr_timespec_from_ns(wait_ns);
	struct gr_return_path_message msg;

	/*
	 * FEATURES and PONG often come together: the second one waits in our buffer. And a
	 * channel without a descriptor waits by itself.
	 */
	if (pfd.fd < 0 || gr_return_path_parse(s->answers.buf, s->answers.bytes, &msg, NULL) != 0) {
		return true;
	}
	return ppoll(&pfd, 1, &wait, NULL) > 0;
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

int gr_source_await_peer(struct gr_source *s, struct gr_error *err)
{
	struct gr_return_path_message msg;
	uint64_t now = gr_clock_ns();
	int rc;

	if (!readable(s, GR_PACING_SLICE_NS)) {
		/* Not one that answers (a pipe behind a socket, say): like a file then. */
		return now - s->ping_ns < GR_SOURCE_PEER_NS ? 1 : 0;
	}
	rc = gr_return_path_next(&s->answers, s->channel, &msg, err);
	if (rc <= 0) {
		return rc < 0 ? rc : gone(err);
	}
	if (msg.type == GR_RETURN_SHUT) {
		return refused(msg.value, err);
	}
	if (msg.type == GR_RETURN_FEATURES) {
		s->ours = true;
	}
	if (msg.type == GR_RETURN_PONG && msg.value == GR_PING_FEATURES) {
		s->answer_expected = true;
		s->model.answer_ns = gr_clock_ns() - s->ping_ns;
		return 0;
	}
	return 1;
}

int gr_source_check_peer(struct gr_source *s, struct gr_error *err)
{
	struct gr_return_path_message msg;
	int rc;

	if (!s->answer_expected || gr_channel_fd(s->channel) < 0 || !readable(s, 0)) {
		return 0;
	}
	rc = gr_return_path_next(&s->answers, s->channel, &msg, err);
	if (rc <= 0) {
		return rc < 0 ? rc : gone(err);
	}
	return msg.type == GR_RETURN_SHUT ? refused(msg.value, err) : 0;
}

int gr_source_await_answer(struct gr_source *s, struct gr_error *err)
{
	bool cancelled = gr_progress_cancelling(&s->progress);
	struct gr_return_path_message msg;
	int rc;

	if (cancelled) {
		(void)shutdown(gr_channel_fd(s->channel), SHUT_RDWR);
	} else if (!readable(s, GR_PACING_SLICE_NS)) {
		return 1;
	}
	rc = gr_return_path_next(&s->answers, s->channel, &msg, err);
	if (rc <= 0) {
		return rc < 0 ? rc : gone(err);
	}
	if (msg.type != GR_RETURN_SHUT) {
		return 1;
	}
	return msg.value == 0 ? 0 : refused(msg.value, err);
}
