/* SPDX-License-Identifier: MIT */
/* All channels of a move: connected in order, accepted in any. */
#include "base/clock.h"
#include "stream/channel.h"
#include "stream/multifd.h"
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

/* How long the next one may take once one has come. */
#define ACCEPT_NS (60 * GR_NS_PER_S)

static void close_all(struct gr_channel **channels, unsigned int count)
{
	for (unsigned int i = 0; i < count; i++) {
		(void)gr_channel_close(channels[i], NULL);
		channels[i] = NULL;
	}
}

static int check_count(unsigned int count, struct gr_error *err)
{
	if (count == 0 || count > GR_MULTIFD_CHANNELS_MAX) {
		return gr_error_set(err, -EINVAL, "%u further channels; 1 to %d can be", count,
				    GR_MULTIFD_CHANNELS_MAX);
	}
	return 0;
}

/* Before anything is opened: a file would be emptied, a command started. */
static int check_uri(const char *uri, struct gr_error *err)
{
	struct gr_uri u;
	int rc = gr_uri_parse(uri, &u, err);

	if (rc < 0) {
		return rc;
	}
	if (!gr_uri_is_socket(&u)) {
		rc = gr_error_set(err, -EINVAL,
				  "%s: further channels need a socket: tcp: or unix:", uri);
	}
	gr_uri_destroy(&u);
	return rc;
}

int gr_multifd_connect(const char *uri, unsigned int count, struct gr_channel **ret_main,
		       struct gr_channel **ret_channels, struct gr_error *err)
{
	struct gr_channel *main_channel = NULL;
	int rc = check_count(count, err);

	rc = rc < 0 ? rc : check_uri(uri, err);
	if (rc == 0) {
		rc = gr_channel_connect(uri, &main_channel, err);
	}
	if (rc < 0) {
		return rc;
	}
	for (unsigned int i = 0; rc == 0 && i < count; i++) {
		rc = gr_channel_connect(uri, &ret_channels[i], err);
		if (rc < 0) {
			gr_error_prefix(err, "further channel %u of %u: ", i, count);
			close_all(ret_channels, i);
			(void)gr_channel_close(main_channel, NULL);
			return rc;
		}
	}
	*ret_main = main_channel;
	return 0;
}

struct gathering {
	struct gr_channel_listener *listener;
	struct gr_channel *main;
	struct gr_channel **channels;
	unsigned int count, further; /* wanted, had */
	uint64_t limit_ns;
	uint64_t kept_until; /* of the channels that are kept; 0: there are none yet */
	uint64_t until;	     /* also of those that have come and may be; 0 as above */
	uint64_t (*clock_ns)(void);
};

static int timeout_ms(const struct gathering *g)
{
	uint64_t now = g->clock_ns();

	return g->until <= now
		       ? 0
		       : (int)GR_MIN((g->until - now) / GR_NS_PER_MS + 1, (uint64_t)60000);
}

enum {
	PEER_HAS_GONE = 0x100, /* no byte */
	TLS_HANDSHAKE = 0x16,  /* the first byte of a client */
};

/* The first byte, which stays, PEER_HAS_GONE, or a negative errno; -EAGAIN: nothing has come yet. */
static int peek(const struct gr_channel *ch)
{
	uint8_t byte;
	ssize_t n;

	do {
		n = recv(gr_channel_fd(ch), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
	} while (n < 0 && errno == EINTR);
	if (n == 0 || (n < 0 && errno == ECONNRESET)) {
		return PEER_HAS_GONE;
	}
	return n < 0 ? -errno : byte;
}

bool gr_multifd_has_gone(const struct gr_channel *ch)
{
	return peek(ch) == PEER_HAS_GONE;
}

/* Waits for it. */
static int first_byte(const struct gr_channel *ch, int wake_fd, int timeout_ms, struct gr_error *err)
{
	int rc;

	while ((rc = peek(ch)) == -EAGAIN) {
		rc = gr_channel_poll(gr_channel_fd(ch), POLLIN, wake_fd, timeout_ms);
		if (rc < 0) {
			break;
		}
	}
	if (rc < 0) {
		(void)gr_error_set(err, rc, "%s: %s", gr_channel_name(ch),
				   rc == -ETIMEDOUT   ? "a peer that says nothing"
				   : rc == -ECANCELED ? "listening was ended"
						      : strerror(-rc));
	}
	return rc;
}

int gr_multifd_tell(const struct gr_channel *ch, int wake_fd, int timeout_ms, struct gr_error *err)
{
	int byte = first_byte(ch, wake_fd, timeout_ms, err);

	if (byte < 0) {
		return byte;
	}
	if (byte == PEER_HAS_GONE) {
		return GR_MULTIFD_NOBODY;
	}
	if (byte == GR_MULTIFD_MAGIC >> 24) {
		return GR_MULTIFD_FURTHER;
	}
	if (byte == GR_STREAM_MAGIC >> 24) {
		return GR_MULTIFD_MAIN;
	}
	if (byte == TLS_HANDSHAKE) {
		return gr_error_set(err, -EOPNOTSUPP,
				    "%s: the peer speaks TLS (its parameter tls-creds), which is not "
				    "supported here",
				    gr_channel_name(ch));
	}
	return gr_error_set(err, -EBADMSG, "%s: no channel of a migration", gr_channel_name(ch));
}

/* A connection that was accepted, and until when the next one may come if this one is kept. */
struct arrival {
	struct gr_channel *ch;
	uint64_t until;
};

static int gather_one(struct gathering *g, const struct arrival *a, struct gr_error *err)
{
	struct gr_channel *ch = a->ch;
	int kind = gr_multifd_tell(ch, gr_channel_listener_wake_fd(g->listener), timeout_ms(g), err);

	if (kind == GR_MULTIFD_FURTHER && g->further < g->count) {
		g->channels[g->further++] = ch;
		g->kept_until = a->until;
		return 0;
	}
	if (kind == GR_MULTIFD_MAIN && !g->main) {
		g->main = ch;
		g->kept_until = a->until;
		return 0;
	}
	if (kind > GR_MULTIFD_NOBODY) {
		kind = gr_error_set(err, -EBADMSG, "%s: %s", gr_channel_name(ch),
				    kind == GR_MULTIFD_FURTHER ? "more further channels than agreed"
							       : "a second main channel");
	}
	(void)gr_channel_close(ch, NULL);
	return kind;
}

/* Looks at the port only: they take no place and give nobody time. Whether there were any. */
static bool drop_gone(struct gathering *g, struct arrival *come, unsigned int *n)
{
	unsigned int stay = 0, n_before = *n;

#ifdef GR_MUTANT_MULTIFD_LOOK_GIVES_TIME
	return false;
#endif
	g->until = g->kept_until;
	for (unsigned int i = 0; i < n_before; i++) {
		if (gr_multifd_has_gone(come[i].ch)) {
			(void)gr_channel_close(come[i].ch, NULL);
			continue;
		}
		come[stay++] = come[i];
		g->until = come[i].until;
	}
	*n = stay;
	return stay < n_before;
}

/*
 * Waits for the next one. Whoever has gone meanwhile had no time to give: without them it may be over, or
 * not have begun.
 */
static int await_next(struct gathering *g, struct arrival *come, unsigned int *n, struct gr_error *err)
{
	int rc = gr_channel_listener_wait(g->listener, timeout_ms(g), err);

	if (rc < 0 && rc != -ETIMEDOUT) {
		return rc;
	}
	if (drop_gone(g, come, n)) {
		if (g->until == 0) {
			return 0;
		}
		if (timeout_ms(g) == 0) {
			return gr_error_set(err, -ETIMEDOUT, "%s: nobody of the move has come in time",
					    gr_channel_listener_uri(g->listener));
		}
		return rc == 0 ? 0 : await_next(g, come, n, err);
	}
	return rc;
}

/* As many as are wanted; fewer if an error or the time limit says so. */
static int collect(struct gathering *g, struct arrival *come, unsigned int wanted, unsigned int *ret_n,
		   struct gr_error *err)
{
	struct gr_error late = { 0 };
	int rc = 0;

	for (*ret_n = 0; *ret_n < wanted; (*ret_n)++) {
		if (g->until != 0) {
			rc = await_next(g, come, ret_n, &late);
		}
		if (rc == -ETIMEDOUT) {
			gr_error_prefix(&late,
					"%u of %u channels have come (has the source as many?): ",
					g->count + 1 - wanted + *ret_n, g->count + 1);
		}
		if (rc < 0) {
			if (err) {
				*err = late;
			}
			return rc;
		}
		rc = gr_channel_accept(g->listener, &come[*ret_n].ch, err);
		if (rc < 0) {
			return rc;
		}
		/* Whoever has come has all of it: the first may only have looked at the port. */
#ifdef GR_MUTANT_MULTIFD_FIRST_HAS_THE_TIME
		if (g->until == 0)
#endif
			g->until = g->clock_ns() + g->limit_ns;
		come[*ret_n].until = g->until;
	}
	return 0;
}

/*
 * So many connections, and only then what they say: a QEMU may wait with the main channel's first
 * byte until the further ones are connected.
 */
static int gather(struct gathering *g, struct gr_error *err)
{
	struct arrival come[GR_MULTIFD_CHANNELS_MAX + 1];
	unsigned int n, missing;
	int rc = 0;

	while (rc == 0 && (missing = g->count - g->further + (g->main ? 0 : 1)) > 0) {
		rc = collect(g, come, missing, &n, err);
		for (unsigned int i = 0; i < n; i++) {
			if (rc == 0) {
				rc = gather_one(g, &come[i], err);
			} else {
				(void)gr_channel_close(come[i].ch, NULL);
			}
		}
		g->until = g->kept_until;
	}
	return rc;
}

static uint64_t clock_ns(void)
{
	return gr_clock_ns();
}

int gr_multifd_accept(struct gr_channel_listener *listener, unsigned int count,
		      struct gr_channel **ret_main, struct gr_channel **ret_channels,
		      struct gr_error *err)
{
	return gr_multifd_accept_within(listener, count, ACCEPT_NS, clock_ns, ret_main, ret_channels,
					err);
}

int gr_multifd_accept_within(struct gr_channel_listener *listener, unsigned int count,
			     uint64_t limit_ns, uint64_t (*clock)(void),
			     struct gr_channel **ret_main, struct gr_channel **ret_channels,
			     struct gr_error *err)
{
	struct gathering g = { .listener = listener,
			       .channels = ret_channels,
			       .count = count,
			       .limit_ns = limit_ns,
			       .clock_ns = clock };
	int rc = check_count(count, err);

	if (rc == 0 && gr_channel_listener_fd(listener) < 0) {
		rc = gr_error_set(err, -EINVAL, "%s: further channels need a socket: tcp: or unix:",
				  gr_channel_listener_uri(listener));
	}
	if (rc == 0) {
		rc = gather(&g, err);
		if (rc < 0) {
			close_all(ret_channels, g.further);
			(void)gr_channel_close(g.main, NULL);
		}
	}
	if (rc < 0) {
		return rc;
	}
	*ret_main = g.main;
	return 0;
}
