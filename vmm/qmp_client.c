/* SPDX-License-Identifier: MIT */
#include "qmp_client.h"
#include "qmp.h"
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { ANSWER_TIMEOUT_MS = 60000, ANSWER_BYTES_MAX = 4 << 20, RETRY_MS = 10 };

struct vmm_qmp_client {
	int fd;
	size_t bytes, room;
	char *in;
};

static int connect_once(const char *where, struct gr_error *err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	const char *path = strncmp(where, "unix:", 5) == 0 ? where + 5 : where;
	int fd;

	if (strlen(path) >= sizeof(addr.sun_path)) {
		return gr_error_set(err, -EINVAL, "monitor '%s': the path is too long", where);
	}
	memcpy(addr.sun_path, path, strlen(path));
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0) {
		int rc = -errno;

		if (fd >= 0) {
			(void)close(fd);
		}
		return gr_error_set(err, rc, "monitor '%s': %s", where, strerror(-rc));
	}
	return fd;
}

/* Read more bytes, or fail. */
static int read_more(struct vmm_qmp_client *client, struct gr_error *err)
{
	struct pollfd fd = { .fd = client->fd, .events = POLLIN };
	ssize_t n;

	if (client->room - client->bytes < 4096) {
		size_t room = 2 * client->room + 8192;
		char *grown = room <= 2 * ANSWER_BYTES_MAX ? realloc(client->in, room) : NULL;

		if (!grown) {
			return gr_error_set(err, -EMSGSIZE, "monitor: an answer is too long");
		}
		client->in = grown;
		client->room = room;
	}
	if (poll(&fd, 1, ANSWER_TIMEOUT_MS) == 0) {
		return gr_error_set(err, -ETIMEDOUT, "monitor: no answer");
	}
	n = recv(client->fd, client->in + client->bytes, client->room - client->bytes, 0);
	if (n < 0 && errno != EINTR) {
		return gr_error_set(err, -errno, "monitor: %s", strerror(errno));
	}
	if (n == 0) {
		return gr_error_set(err, -ECONNRESET, "monitor: it closed the connection");
	}
	client->bytes += n > 0 ? (size_t)n : 0;
	return 0;
}

/* Read one message. */
static int read_message(struct vmm_qmp_client *client, json_t **ret, struct gr_error *err)
{
	size_t bytes, skip;

	while ((bytes = vmm_qmp_frame(client->in, client->bytes, &skip)) == 0) {
		int rc = read_more(client, err);

		if (rc < 0) {
			return rc;
		}
	}
	*ret = json_loadb(client->in + skip, bytes, 0, NULL);
	client->bytes -= skip + bytes;
	memmove(client->in, client->in + skip + bytes, client->bytes);
	return *ret ? 0 : gr_error_set(err, -EPROTO, "monitor: what it says is no JSON");
}

static int send_all(struct vmm_qmp_client *client, const char *text, struct gr_error *err)
{
	size_t left = strlen(text);

	while (left > 0) {
		ssize_t n = send(client->fd, text, left, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR) {
			continue;
		}
		if (n < 0) {
			return gr_error_set(err, -errno, "monitor: %s", strerror(errno));
		}
		text += n;
		left -= (size_t)n;
	}
	return 0;
}

int vmm_qmp_execute(struct vmm_qmp_client *client, const char *command, json_t *arguments,
		    json_t **ret_value, struct gr_error *err)
{
	json_t *request = json_pack("{ss}", "execute", command), *answer = NULL, *value;
	char *text;
	int rc;

	if (arguments) {
		(void)json_object_set_new(request, "arguments", arguments);
	}
	text = json_dumps(request, JSON_COMPACT);
	json_decref(request);
	if (!text) {
		return gr_error_set(err, -ENOMEM, "no memory for a command");
	}
	rc = send_all(client, text, err);
	free(text);
	rc = rc < 0 ? rc : send_all(client, "\n", err);
	do {
		json_decref(answer);
		answer = NULL;
		rc = rc < 0 ? rc : read_message(client, &answer, err);
	} while (rc == 0 && json_object_get(answer, "event"));
	if (rc < 0) {
		return rc;
	}
	value = json_object_get(answer, "return");
	if (!value) {
		const char *desc = json_string_value(
			json_object_get(json_object_get(answer, "error"), "desc"));

		rc = gr_error_set(err, -EREMOTEIO, "%s: %s", command, desc ? desc : "no reason");
	} else if (ret_value) {
		*ret_value = json_incref(value);
	}
	json_decref(answer);
	return rc;
}

int vmm_qmp_connect(const char *where, int timeout_ms, struct vmm_qmp_client **ret_client,
		    struct gr_error *err)
{
	const struct timespec retry = { .tv_nsec = RETRY_MS * 1000000L };
	struct vmm_qmp_client *client;
	json_t *greeting = NULL;
	int fd, rc;

	while ((fd = connect_once(where, err)) < 0 && fd != -EINVAL && timeout_ms > 0) {
		(void)nanosleep(&retry, NULL);
		timeout_ms -= RETRY_MS;
	}
	if (fd < 0) {
		return fd;
	}
	client = calloc(1, sizeof(*client));
	if (!client) {
		(void)close(fd);
		return gr_error_set(err, -ENOMEM, "no memory for a monitor's client");
	}
	client->fd = fd;
	rc = read_message(client, &greeting, err);
	if (rc == 0 && !json_object_get(greeting, "QMP")) {
		rc = gr_error_set(err, -EPROTO, "'%s' is no QMP monitor", where);
	}
	json_decref(greeting);
	rc = rc < 0 ? rc : vmm_qmp_execute(client, "qmp_capabilities", NULL, NULL, err);
	if (rc < 0) {
		vmm_qmp_disconnect(client);
		return rc;
	}
	*ret_client = client;
	return 0;
}

void vmm_qmp_disconnect(struct vmm_qmp_client *client)
{
	if (!client) {
		return;
	}
	(void)close(client->fd);
	free(client->in);
	free(client);
}

uint64_t vmm_qmp_number(const json_t *object, const char *name)
{
	json_int_t value = json_integer_value(json_object_get(object, name));

	return value > 0 ? (uint64_t)value : 0;
}

const char *vmm_qmp_text(const json_t *object, const char *name)
{
	const char *value = json_string_value(json_object_get(object, name));

	return value ? value : "";
}

bool vmm_qmp_has_ended(const json_t *answer)
{
	const char *status = vmm_qmp_text(answer, "status");

	return strcmp(status, "completed") == 0 || strcmp(status, "failed") == 0 ||
	       strcmp(status, "cancelled") == 0;
}
