/* SPDX-License-Identifier: MIT */
#include "qmp.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/types.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

enum { EVENTS_MAX = 1024 };

struct vmm_qmp {
	const struct vmm_qmp_command *commands;			/* (c) */
	void *opaque;						/* (c) */
	struct gr_loop *loop;					/* (c) */
	int listen_fd;						/* (c) -1: none */
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)]; /* (c) */

	/* (o) the loop's thread: the client, its input and what it has not read yet */
	struct gr_loop_handler *listener, *client; /* NULL: none */
	int client_fd;
	unsigned int client_events; /* what the loop waits for */
	bool ending;		    /* no more commands */
	bool negotiated;
	bool skipping; /* the rest of a message that was too long */
	size_t in_bytes, out_bytes, out_room;
	char *out;
	char in[VMM_QMP_MESSAGE_BYTES_MAX];

	pthread_mutex_t lock;
	json_t *events; /* (l) an array: what vmm_qmp_event() left for the loop's thread */
	struct gr_notifier has_events;
	struct gr_loop_handler *event_handler; /* (c) */
};

size_t vmm_qmp_frame(const char *data, size_t bytes, size_t *ret_skip)
{
	bool in_string = false;
	size_t at = 0, depth = 0;

	while (at < bytes && strchr(" \t\r\n", data[at]) && data[at] != '\0') {
		at++;
	}
	*ret_skip = at;
	for (size_t begin = at; at < bytes; at++) {
		char c = data[at];

		if (in_string) {
			if (c == '\\') {
				at++;
			}
			in_string = c != '"';
			continue;
		}
		in_string = c == '"';
		if (c == '{' || c == '[') {
			depth++;
		}
		if ((c == '}' || c == ']') && depth > 0 && --depth == 0) {
			return at + 1 - begin;
		}
		if (c == '\n' && depth == 0) {
			return at - begin; /* a line without an object */
		}
	}
	return 0;
}

/* The path in "unix:PATH,server=on,wait=off". */
static int parse_where(const char *where, char *path, size_t room, struct gr_error *err)
{
	const char *from = strncmp(where, "unix:", 5) == 0 ? where + 5 : where;
	const char *comma = strchr(from, ',');
	size_t bytes = comma ? (size_t)(comma - from) : strlen(from);

	if (bytes == 0 || bytes >= room) {
		return gr_error_set(err, -EINVAL, "monitor '%s': want unix:PATH, at most %zu bytes",
				    where, room - 1);
	}
	if (comma && strcmp(comma, ",server=on,wait=off") != 0 &&
	    strcmp(comma, ",server,nowait") != 0) {
		return gr_error_set(err, -EINVAL, "monitor '%s': cannot do '%s'", where, comma + 1);
	}
	memcpy(path, from, bytes);
	path[bytes] = '\0';
	return 0;
}

/* Whether there is a socket file that nobody listens on: a process left it behind. */
static bool is_stale(const struct sockaddr_un *addr)
{
	struct stat st;
	bool refused;
	int fd;

	/* connecting to a plain file is refused too, and that is somebody's file */
	if (lstat(addr->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode)) {
		return false;
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0) {
		return false;
	}
	refused = connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0 &&
		  errno == ECONNREFUSED;
	(void)close(fd);
	return refused;
}

static int open_listener(struct vmm_qmp *qmp, struct gr_error *err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int rc;

	if (fd < 0) {
		return gr_error_set(err, -errno, "monitor: %s", strerror(errno));
	}
	memcpy(addr.sun_path, qmp->path, sizeof(qmp->path));
	if (is_stale(&addr)) {
		(void)unlink(qmp->path);
	}
	if (bind(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0 || listen(fd, 4) < 0) {
		rc = -errno;
		(void)close(fd);
		return gr_error_set(err, rc, "monitor '%s': %s", qmp->path, strerror(-rc));
	}
	qmp->listen_fd = fd;
	return 0;
}

static int wait_for(struct vmm_qmp *qmp, int fd, void (*read)(void *opaque),
		    void (*write)(void *opaque), struct gr_loop_handler **ret_handler,
		    struct gr_error *err)
{
	const struct gr_loop_fd_desc desc = {
		.size = sizeof(desc),
		.fd = fd,
		.events = GR_LOOP_READ,
		.read = read,
		.write = write,
		.opaque = qmp,
	};

	return gr_loop_add_fd(qmp->loop, &desc, ret_handler, err);
}

/* How many connections the listener's handler takes now: one if there is no client. */
static void listen_if_free(struct vmm_qmp *qmp)
{
	bool is_free = qmp->client_fd < 0 && !qmp->ending;

	if (qmp->listener) {
		/* turning on may want memory; then the next change tries again */
		(void)!gr_loop_set_events(qmp->listener, is_free ? GR_LOOP_READ : 0, NULL);
	}
}

static void drop_client(struct vmm_qmp *qmp)
{
	if (qmp->client) {
		gr_loop_del(qmp->client);
		qmp->client = NULL;
	}
	if (qmp->client_fd >= 0) {
		(void)close(qmp->client_fd);
	}
	qmp->client_fd = -1;
	qmp->in_bytes = qmp->out_bytes = 0;
	qmp->negotiated = qmp->skipping = false;
	listen_if_free(qmp);
}

void vmm_qmp_free(struct vmm_qmp *qmp)
{
	if (!qmp) {
		return;
	}
	qmp->ending = true;
	drop_client(qmp);
	if (qmp->event_handler) {
		gr_loop_del_sync(qmp->event_handler);
	}
	if (qmp->listener) {
		gr_loop_del_sync(qmp->listener);
	}
	if (qmp->listen_fd >= 0) {
		(void)close(qmp->listen_fd);
		(void)unlink(qmp->path);
	}
	gr_notifier_destroy(&qmp->has_events);
	json_decref(qmp->events);
	free(qmp->out);
	(void)pthread_mutex_destroy(&qmp->lock);
	free(qmp);
}

/* Give the client as much as it takes now. */
static void write_out(struct vmm_qmp *qmp)
{
	while (qmp->client_fd >= 0 && qmp->out_bytes > 0) {
		ssize_t n =
			send(qmp->client_fd, qmp->out, qmp->out_bytes, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EINTR) {
			continue;
		}
		if (n < 0 && errno != EAGAIN) {
			drop_client(qmp);
		}
		if (n < 0) {
			return;
		}
		qmp->out_bytes -= (size_t)n;
		memmove(qmp->out, qmp->out + n, qmp->out_bytes);
	}
}

/* Queue a message for the client; takes the reference. */
static void say(struct vmm_qmp *qmp, json_t *message)
{
	char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;
	size_t bytes = text ? strlen(text) : 0;

	json_decref(message);
	if (!text || qmp->client_fd < 0) {
		free(text);
		return;
	}
	if (qmp->out_bytes + bytes + 2 > qmp->out_room) {
		size_t room = 2 * (qmp->out_bytes + bytes + 2);
		char *grown =
			room <= 2 * VMM_QMP_PENDING_BYTES_MAX ? realloc(qmp->out, room) : NULL;

		if (!grown) {
			drop_client(qmp);
			free(text);
			return;
		}
		qmp->out = grown;
		qmp->out_room = room;
	}
	memcpy(qmp->out + qmp->out_bytes, text, bytes);
	memcpy(qmp->out + qmp->out_bytes + bytes, "\r\n", 2);
	qmp->out_bytes += bytes + 2;
	free(text);
	write_out(qmp);
}

static json_t *error_object(const char *class, const char *desc)
{
	json_t *error = json_pack("{s{ss ss?}}", "error", "class", class, "desc", desc);

	/* a message with bytes that are not UTF-8 */
	return error ? error
		     : json_pack("{s{ss ss}}", "error", "class", class, "desc", "(no text)");
}

/* Names in `args` that `allowed` does not list. */
static const char *unexpected(json_t *args, const char *allowed)
{
	const char *name;
	json_t *value;

	json_object_foreach(args, name, value)
	{
		const char *found = allowed;
		size_t bytes = strlen(name);

		while ((found = strstr(found, name)) &&
		       ((found != allowed && found[-1] != ' ') ||
			(found[bytes] != '\0' && found[bytes] != ' '))) {
			found++;
		}
		if (!found || bytes == 0) {
			return name;
		}
	}
	return NULL;
}

static json_t *run_command(struct vmm_qmp *qmp, const struct vmm_qmp_command *command, json_t *args)
{
	struct gr_error err = { .msg = "" };
	json_t *value = NULL, *empty = json_object(), *reply;
	const char *extra;
	int rc;

	args = args ? args : empty;
	extra = unexpected(args, command->arguments);
	if (extra) {
		rc = gr_error_set(&err, -EINVAL, "Parameter '%s' is unexpected", extra);
	} else {
		rc = command->fn(qmp->opaque, args, &value, &err);
	}
	if (rc < 0) {
		json_decref(value);
		reply = error_object("GenericError", err.msg);
	} else {
		reply = json_pack("{so}", "return", value ? value : json_object());
	}
	json_decref(empty);
	return reply;
}

static json_t *answer(struct vmm_qmp *qmp, json_t *request)
{
	const struct vmm_qmp_command *command = qmp->commands;
	const char *name = json_string_value(json_object_get(request, "execute"));
	json_t *args = json_object_get(request, "arguments");
	char text[160];

	if (!json_is_object(request)) {
		return error_object("GenericError", "QMP input must be a JSON object");
	}
	if (!name) {
		return error_object("GenericError", "QMP input lacks member 'execute'");
	}
	if (args && !json_is_object(args)) {
		return error_object("GenericError",
				    "QMP input member 'arguments' must be an object");
	}
	if (strcmp(name, "qmp_capabilities") == 0) {
		if (qmp->negotiated) {
			return error_object("CommandNotFound",
					    "Capabilities negotiation is already complete, "
					    "command ignored");
		}
		qmp->negotiated = true;
		return json_pack("{s{}}", "return");
	}
	if (!qmp->negotiated) {
		return error_object("CommandNotFound", "Expecting capabilities negotiation with "
						       "'qmp_capabilities'");
	}
	while (command->name && strcmp(command->name, name) != 0) {
		command++;
	}
	if (!command->name) {
		(void)snprintf(text, sizeof(text), "The command %.100s has not been found", name);
		return error_object("CommandNotFound", text);
	}
	return run_command(qmp, command, args);
}

/* Serve one message. */
static void serve(struct vmm_qmp *qmp, const char *text, size_t bytes)
{
	json_error_t why;
	json_t *request = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &why), *reply, *id;

	if (!request) {
		char desc[256];

		(void)snprintf(desc, sizeof(desc), "Invalid JSON syntax: %.160s", why.text);
		say(qmp, error_object("GenericError", desc));
		return;
	}
	reply = answer(qmp, request);
	id = json_object_get(request, "id");
	if (id && reply) {
		(void)json_object_set(reply, "id", id);
	}
	json_decref(request);
	say(qmp, reply);
}

/* Whether bytes that are no whole message yet can still become one. */
static bool can_become_json(const char *text, size_t bytes)
{
	json_error_t why;
	json_t *value = json_loadb(text, bytes, 0, &why);

	if (value) {
		json_decref(value);
		return true;
	}
	return json_error_code(&why) == json_error_premature_end_of_input;
}

static void consume(struct vmm_qmp *qmp, size_t bytes)
{
	qmp->in_bytes -= bytes;
	memmove(qmp->in, qmp->in + bytes, qmp->in_bytes);
}

/* What came is neither a message nor the beginning of one: say so, go on after the line. */
static void refuse_line(struct vmm_qmp *qmp, const char *desc)
{
	const char *newline = memchr(qmp->in, '\n', qmp->in_bytes);

	qmp->skipping = !newline;
	consume(qmp, newline ? (size_t)(newline + 1 - qmp->in) : qmp->in_bytes);
	/* last: a client that is gone is dropped in there, and its input with it */
	say(qmp, error_object("GenericError", desc));
}

/* Serve every message that has come in whole. */
static void serve_all(struct vmm_qmp *qmp)
{
	while (qmp->client_fd >= 0 && qmp->in_bytes > 0) {
		const char *newline = memchr(qmp->in, '\n', qmp->in_bytes);
		size_t skip, bytes;

		if (qmp->skipping) {
			qmp->skipping = !newline;
			consume(qmp, newline ? (size_t)(newline + 1 - qmp->in) : qmp->in_bytes);
			continue;
		}
		bytes = vmm_qmp_frame(qmp->in, qmp->in_bytes, &skip);
		if (bytes > 0) {
			serve(qmp, qmp->in + skip, bytes);
			consume(qmp, qmp->client_fd >= 0 ? skip + bytes : 0);
			continue;
		}
		consume(qmp, skip);
		newline = memchr(qmp->in, '\n', qmp->in_bytes);
		if (newline && !can_become_json(qmp->in, qmp->in_bytes)) {
			refuse_line(qmp, "Invalid JSON syntax");
			continue;
		}
		if (qmp->in_bytes == sizeof(qmp->in)) {
			refuse_line(qmp, "The message is too long");
			continue;
		}
		return;
	}
}

static void read_client(struct vmm_qmp *qmp)
{
	ssize_t n = recv(qmp->client_fd, qmp->in + qmp->in_bytes, sizeof(qmp->in) - qmp->in_bytes,
			 MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
		return;
	}
	if (n <= 0) {
		drop_client(qmp);
		return;
	}
	qmp->in_bytes += (size_t)n;
	serve_all(qmp);
}

/* Hand the events that other threads left to the client, if it has negotiated. */
static void send_events(struct vmm_qmp *qmp)
{
	json_t *events, *event;
	size_t i;

	(void)pthread_mutex_lock(&qmp->lock);
	events = qmp->events;
	qmp->events = json_array();
	(void)pthread_mutex_unlock(&qmp->lock);
	json_array_foreach(events, i, event)
	{
		if (qmp->negotiated) {
			say(qmp, json_incref(event));
		}
	}
	json_decref(events);
}

/* Wait for what the client has to say, and until it takes what we have. */
static void wait_for_client(struct vmm_qmp *qmp)
{
	unsigned int events =
		(qmp->ending ? 0 : GR_LOOP_READ) | (qmp->out_bytes > 0 ? GR_LOOP_WRITE : 0);

	if (!qmp->client || events == qmp->client_events) {
		return;
	}
	qmp->client_events = events;
	if (gr_loop_set_events(qmp->client, events, NULL) < 0) {
		drop_client(qmp); /* no memory to wait for it */
	}
}

static void client_speaks(void *opaque)
{
	struct vmm_qmp *qmp = opaque;

	read_client(qmp);
	send_events(qmp); /* those of its commands come after their answers */
	wait_for_client(qmp);
}

static void client_takes(void *opaque)
{
	struct vmm_qmp *qmp = opaque;

	write_out(qmp);
	wait_for_client(qmp);
}

static void has_events(void *opaque)
{
	struct vmm_qmp *qmp = opaque;

	(void)gr_notifier_clear(&qmp->has_events);
	send_events(qmp);
	wait_for_client(qmp);
}

static void greet(void *opaque)
{
	struct vmm_qmp *qmp = opaque;

	qmp->client_fd = accept4(qmp->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (qmp->client_fd < 0) {
		return;
	}
	if (wait_for(qmp, qmp->client_fd, client_speaks, client_takes, &qmp->client, NULL) < 0) {
		drop_client(qmp);
		return;
	}
	qmp->client_events = GR_LOOP_READ;
	listen_if_free(qmp);
	say(qmp, json_pack("{s{s{s{sisisi}ss}s[]}}", "QMP", "version", "qemu", "major",
			   GR_VERSION_MAJOR, "minor", GR_VERSION_MINOR, "micro", GR_VERSION_PATCH,
			   "package", "guestram", "capabilities"));
	wait_for_client(qmp);
}

void vmm_qmp_event(struct vmm_qmp *qmp, const char *name, json_t *data)
{
	struct timeval now;
	json_t *event;

	(void)gettimeofday(&now, NULL);
	event = json_pack("{s{sIsI}ss}", "timestamp", "seconds", (json_int_t)now.tv_sec,
			  "microseconds", (json_int_t)now.tv_usec, "event", name);
	if (data && event) {
		(void)json_object_set(event, "data", data);
	}
	json_decref(data);
	(void)pthread_mutex_lock(&qmp->lock);
	if (json_array_size(qmp->events) < EVENTS_MAX) {
		(void)json_array_append_new(qmp->events, event); /* ours no more */
		event = NULL;
	}
	(void)pthread_mutex_unlock(&qmp->lock);
	json_decref(event);
	gr_notifier_set(&qmp->has_events);
}

void vmm_qmp_flush(struct vmm_qmp *qmp)
{
	const uint64_t turn_ns = 50000000;

	qmp->ending = true;
	send_events(qmp);
	wait_for_client(qmp);
	listen_if_free(qmp);
	for (int tries = 0; tries < 20 && qmp->client_fd >= 0 && qmp->out_bytes > 0; tries++) {
		(void)!gr_loop_step(qmp->loop, turn_ns, NULL);
	}
}

static int init(struct vmm_qmp *qmp, const char *where, struct gr_error *err)
{
	int rc = 0;

	qmp->events = json_array();
	if (!qmp->events) {
		return gr_error_set(err, -ENOMEM, "no memory for a monitor");
	}
	if (where) {
		rc = parse_where(where, qmp->path, sizeof(qmp->path), err);
		rc = rc < 0 ? rc : open_listener(qmp, err);
	}
	if (rc < 0) {
		return rc;
	}
	rc = wait_for(qmp, gr_notifier_fd(&qmp->has_events), has_events, NULL, &qmp->event_handler,
		      err);
	if (rc == 0 && where) {
		rc = wait_for(qmp, qmp->listen_fd, greet, NULL, &qmp->listener, err);
	}
	return rc;
}

int vmm_qmp_create(struct gr_loop *loop, const char *where, const struct vmm_qmp_command *commands,
		   void *opaque, struct vmm_qmp **ret_qmp, struct gr_error *err)
{
	struct vmm_qmp *qmp = calloc(1, sizeof(*qmp));
	int rc;

	if (!qmp) {
		return gr_error_set(err, -ENOMEM, "no memory for a monitor");
	}
	rc = gr_notifier_init(&qmp->has_events, err);
	if (rc < 0) {
		free(qmp);
		return rc;
	}
	qmp->loop = loop;
	qmp->commands = commands;
	qmp->opaque = opaque;
	qmp->listen_fd = qmp->client_fd = -1;
	(void)pthread_mutex_init(&qmp->lock, NULL);
	rc = init(qmp, where, err);
	if (rc < 0) {
		vmm_qmp_free(qmp);
		return rc;
	}
	*ret_qmp = qmp;
	return 0;
}
