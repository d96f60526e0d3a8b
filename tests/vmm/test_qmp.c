/* SPDX-License-Identifier: MIT */
/* The monitor's protocol, with friends and with enemies. */
#include "harness.h"
#include "qmp.h"
#include "qmp_client.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct server {
	struct gr_loop *loop;
	struct vmm_qmp *qmp;
	pthread_t thread;
	bool quit; /* (a) */
	char dir[32], where[64];
};

static int do_echo(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	const char *text = NULL;
	uint64_t number = 7;
	int rc = vmm_qmp_need(args, "text", err);

	(void)opaque;
	rc = rc < 0 ? rc : vmm_qmp_get_string(args, "text", &text, err);
	rc = rc < 0 ? rc : vmm_qmp_get_u64(args, "number", &number, err);
	if (rc == 0) {
		*ret = json_pack("{sssI}", "text", text, "number", (json_int_t)number);
	}
	return rc;
}

static int do_event(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct server *server = opaque;

	(void)args;
	(void)ret;
	(void)err;
	vmm_qmp_event(server->qmp, "HAPPENED", json_pack("{si}", "what", 3));
	return 0;
}

static int do_quit(void *opaque, json_t *args, json_t **ret, struct gr_error *err)
{
	struct server *server = opaque;

	(void)args;
	(void)ret;
	(void)err;
	__atomic_store_n(&server->quit, true, __ATOMIC_RELEASE);
	return 0;
}

static const struct vmm_qmp_command commands[] = {
	{ "echo", "text number", do_echo },
	{ "event", "", do_event },
	{ "quit", "", do_quit },
	{ NULL, NULL, NULL },
};

static void *serve(void *opaque)
{
	struct server *server = opaque;

	while (!__atomic_load_n(&server->quit, __ATOMIC_ACQUIRE)) {
		ASSERT_GE(gr_loop_step(server->loop, GR_LOOP_NEVER, NULL), 0);
	}
	return NULL;
}

static void start(struct server *server)
{
	struct gr_error err;

	*server = (struct server){ .dir = "/tmp/gr-qmp-XXXXXX" };
	ASSERT(mkdtemp(server->dir));
	(void)snprintf(server->where, sizeof(server->where), "unix:%s/qmp", server->dir);
	ASSERT_EQ(gr_loop_create(NULL, &server->loop, NULL), 0);
	if (vmm_qmp_create(server->loop, server->where, commands, server, &server->qmp, &err) < 0) {
		FAIL("%s", err.msg);
	}
	ASSERT_EQ(pthread_create(&server->thread, NULL, serve, server), 0);
}

static void stop(struct server *server)
{
	__atomic_store_n(&server->quit, true, __ATOMIC_RELEASE);
	gr_loop_stop(server->loop);
	ASSERT_EQ(pthread_join(server->thread, NULL), 0);
	vmm_qmp_free(server->qmp);
	gr_loop_free(server->loop);
	ASSERT_EQ(access(server->where + 5, F_OK), -1); /* it removed its socket */
	ASSERT_EQ(rmdir(server->dir), 0);
}

/* A client without manners: sends what it is given. */
static int connect_raw(const struct server *server)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", server->where + 5);
	ASSERT_EQ(connect(fd, (const struct sockaddr *)&addr, sizeof(addr)), 0);
	return fd;
}

static void send_text(int fd, const char *text)
{
	ASSERT_EQ(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

/* The next line the server says. */
static const char *line(int fd)
{
	static char text[8192];
	size_t n = 0;

	while (n < sizeof(text) - 1 && recv(fd, text + n, 1, 0) == 1 && text[n] != '\n') {
		n++;
	}
	text[n] = '\0';
	return text;
}

static int connect_negotiated(const struct server *server)
{
	int fd = connect_raw(server);

	ASSERT_HAS(line(fd), "\"QMP\":");
	send_text(fd, "{\"execute\":\"qmp_capabilities\"}\n");
	ASSERT_HAS(line(fd), "{\"return\":{}}");
	return fd;
}

TEST(a_client_is_greeted_negotiates_and_gets_answers_with_its_id)
{
	struct server server;
	int fd;

	start(&server);
	fd = connect_raw(&server);
	ASSERT_HAS(line(fd), "{\"QMP\":{\"version\":{\"qemu\":{\"major\":0");
	send_text(fd, "{\"execute\":\"echo\",\"id\":1}");
	ASSERT_HAS(line(fd), "CommandNotFound");
	send_text(fd, "{\"execute\":\"qmp_capabilities\",\"id\":{\"a\":[1]}}\r\n");
	ASSERT_HAS(line(fd), "\"id\":{\"a\":[1]}");
	send_text(fd, "{\"execute\":\"qmp_capabilities\"}");
	ASSERT_HAS(line(fd), "already complete");
	send_text(fd, "{\"execute\":\"echo\",\"arguments\":{\"text\":\"a}{\\\"b\"},\"id\":\"x\"}");
	ASSERT_HAS(line(fd), "{\"return\":{\"text\":\"a}{\\\"b\",\"number\":7},\"id\":\"x\"}");
	(void)close(fd);
	stop(&server);
}

TEST(requests_may_come_in_pieces_many_at_once_and_over_lines)
{
	const char *text = "{\"execute\":\n \"echo\",\n\n \"arguments\": {\"text\": \"t\"}}";
	struct server server;
	int fd;

	start(&server);
	fd = connect_negotiated(&server);
	for (size_t i = 0; text[i]; i++) {
		const char one[] = { text[i], '\0' };

		send_text(fd, one);
	}
	ASSERT_HAS(line(fd), "\"text\":\"t\"");
	send_text(fd, "{\"execute\":\"nope\",\"id\":1}{\"execute\":\"nope\",\"id\":2}\n");
	ASSERT_HAS(line(fd), "\"id\":1");
	ASSERT_HAS(line(fd), "\"id\":2");
	(void)close(fd);
	stop(&server);
}

TEST(wrong_input_gets_an_error_and_the_server_lives_on)
{
	const struct {
		const char *text, *says;
	} cases[] = {
		{ "hello\n", "Invalid JSON" },
		{ "{bad\n", "Invalid JSON" },
		{ "}\n", "Invalid JSON" },
		{ "[1,2]\n", "must be a JSON object" },
		{ "{\"a\":}\n", "Invalid JSON" },
		{ "{\"execute\":\"\xff\xfe\"}\n", "Invalid JSON" },
		{ "{\"execute\":3}\n", "lacks member 'execute'" },
		{ "{}\n", "lacks member 'execute'" },
		{ "{\"execute\":\"rm -rf\"}\n", "CommandNotFound" },
		{ "{\"execute\":\"echo\",\"arguments\":[]}\n", "must be an object" },
		{ "{\"execute\":\"echo\"}\n", "Parameter 'text' is missing" },
		{ "{\"execute\":\"echo\",\"arguments\":{\"text\":1}}\n", "expected: string" },
		{ "{\"execute\":\"echo\",\"arguments\":{\"text\":\"\",\"number\":-1}}\n",
		  "expected: integer" },
		{ "{\"execute\":\"echo\",\"arguments\":{\"text\":\"\",\"tex\":1}}\n",
		  "Parameter 'tex' is unexpected" },
		{ "{\"execute\":\"echo\",\"execute\":\"quit\"}\n", "Invalid JSON" },
	};
	struct server server;
	int fd;

	start(&server);
	fd = connect_negotiated(&server);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const char *said;

		send_text(fd, cases[i].text);
		said = line(fd);
		ASSERT_HAS(said, "\"error\":{\"class\":");
		ASSERT_HAS(said, cases[i].says);
	}
	send_text(fd, "{\"execute\":\"echo\",\"arguments\":{\"text\":\"alive\"}}\n");
	ASSERT_HAS(line(fd), "alive");
	(void)close(fd);
	stop(&server);
}

TEST(a_message_without_end_is_refused_at_its_limit)
{
	struct server server;
	char *text = malloc(VMM_QMP_MESSAGE_BYTES_MAX + 100);
	int fd;

	start(&server);
	fd = connect_negotiated(&server);
	memset(text, '{', VMM_QMP_MESSAGE_BYTES_MAX + 99);
	text[VMM_QMP_MESSAGE_BYTES_MAX + 99] = '\0';
	send_text(fd, text);
	ASSERT_HAS(line(fd), "too long");
	send_text(fd,
		  "still the same line\n{\"execute\":\"echo\",\"arguments\":{\"text\":\"x\"}}\n");
	ASSERT_HAS(line(fd), "\"text\":\"x\"");
	(void)close(fd);
	free(text);
	stop(&server);
}

/* The server in this thread, so that the client is surely gone before its input is looked at. */
static void greet_read_and_close(const struct server *server, const char *text)
{
	int fd = connect_raw(server);

	ASSERT_EQ(gr_loop_step(server->loop, UINT64_C(60000000000), NULL), 1);
	ASSERT_HAS(line(fd), "\"QMP\"");
	send_text(fd, text);
	(void)close(fd);
	ASSERT_EQ(gr_loop_step(server->loop, UINT64_C(60000000000), NULL), 1);
}

TEST(a_client_may_be_gone_when_its_input_is_refused)
{
	struct server server = { .dir = "/tmp/gr-qmp-XXXXXX" };
	char *text = malloc(VMM_QMP_MESSAGE_BYTES_MAX + 1);
	int fd;

	memset(text, '{', VMM_QMP_MESSAGE_BYTES_MAX);
	text[VMM_QMP_MESSAGE_BYTES_MAX] = '\0';
	ASSERT(mkdtemp(server.dir));
	(void)snprintf(server.where, sizeof(server.where), "unix:%s/qmp", server.dir);
	ASSERT_EQ(gr_loop_create(NULL, &server.loop, NULL), 0);
	ASSERT_EQ(vmm_qmp_create(server.loop, server.where, commands, &server, &server.qmp, NULL),
		  0);
	greet_read_and_close(&server, "{ x\n");
	greet_read_and_close(&server, "{ x\n{ y\n{\"execute\":\"nope\"}\n");
	greet_read_and_close(&server, text);
	/* the next one's first line is its own */
	ASSERT_EQ(pthread_create(&server.thread, NULL, serve, &server), 0);
	fd = connect_negotiated(&server);
	(void)close(fd);
	free(text);
	stop(&server);
}

TEST(clients_come_one_after_the_other_and_the_next_one_negotiates_afresh)
{
	struct server server;

	start(&server);
	for (int i = 0; i < 5; i++) {
		int fd = connect_negotiated(&server), next = connect_raw(&server);

		send_text(fd, "{\"execute\":\"echo\",\"argum"); /* and away it goes */
		(void)close(fd);
		ASSERT_HAS(line(next), "\"QMP\"");
		send_text(next, "{\"execute\":\"echo\"}");
		ASSERT_HAS(line(next), "Expecting capabilities");
		(void)close(next);
	}
	stop(&server);
}

TEST(events_have_a_time_and_come_after_the_negotiation_only)
{
	struct server server;
	const char *said;
	int fd;

	start(&server);
	fd = connect_raw(&server);
	ASSERT_HAS(line(fd), "QMP");
	vmm_qmp_event(server.qmp, "TOO_EARLY", NULL);
	(void)usleep(50000);
	send_text(fd, "{\"execute\":\"qmp_capabilities\"}");
	ASSERT_HAS(line(fd), "{\"return\":{}}");
	send_text(fd, "{\"execute\":\"event\"}");
	ASSERT_HAS(line(fd), "{\"return\":{}}");
	said = line(fd);
	ASSERT_HAS(said, "\"event\":\"HAPPENED\"");
	ASSERT_HAS(said, "\"data\":{\"what\":3}");
	ASSERT_HAS(said, "\"timestamp\":{\"seconds\":");
	(void)close(fd);
	stop(&server);
}

TEST(a_client_that_never_reads_is_dropped_not_kept_in_memory)
{
	struct server server;
	char *text = malloc(60001);
	int fd, next;

	start(&server);
	fd = connect_negotiated(&server);
	memset(text, 'x', 60000);
	text[60000] = '\0';
	for (int i = 0; i < 200; i++) {
		char *request;

		if (asprintf(&request, "{\"execute\":\"echo\",\"arguments\":{\"text\":\"%s\"}}\n",
			     text) < 0 ||
		    send(fd, request, strlen(request), MSG_NOSIGNAL) < 0) {
			free(request);
			break;
		}
		free(request);
	}
	next = connect_negotiated(&server); /* served only when the first one is gone */
	(void)close(next);
	(void)close(fd);
	free(text);
	stop(&server);
}

TEST(the_client_executes_and_gets_the_reason_of_a_refusal)
{
	struct server server;
	struct vmm_qmp_client *client;
	struct gr_error err;
	json_t *value = NULL;

	start(&server);
	ASSERT_EQ(vmm_qmp_connect(server.where, 1000, &client, &err), 0);
	ASSERT_EQ(vmm_qmp_execute(client, "event", NULL, NULL, &err), 0);
	ASSERT_EQ(vmm_qmp_execute(client, "echo", json_pack("{ss}", "text", "t"), &value, &err), 0);
	ASSERT_STR_EQ(json_string_value(json_object_get(value, "text")), "t");
	json_decref(value);
	ASSERT_EQ(vmm_qmp_execute(client, "echo", NULL, NULL, &err), -EREMOTEIO);
	ASSERT_HAS(err.msg, "Parameter 'text' is missing");
	vmm_qmp_disconnect(client);
	stop(&server);
	ASSERT_LT(vmm_qmp_connect(server.where, 30, &client, &err), 0);
	ASSERT_HAS(err.msg, server.where);
}

TEST(a_stale_socket_is_taken_over_and_a_live_one_is_not)
{
	struct server server;
	struct gr_loop *loop;
	struct vmm_qmp *second;
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct gr_error err;
	char path[] = "/tmp/gr-qmp-stale-XXXXXX";
	int fd = mkstemp(path);

	start(&server);
	ASSERT_EQ(gr_loop_create(NULL, &loop, NULL), 0);
	ASSERT_EQ(vmm_qmp_create(loop, server.where, commands, NULL, &second, &err), -EADDRINUSE);
	stop(&server);
	/* a file */
	ASSERT_EQ(vmm_qmp_create(loop, path, commands, NULL, &second, &err), -EADDRINUSE);
	(void)close(fd);
	ASSERT_EQ(unlink(path), 0);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	ASSERT_EQ(bind(fd, (const struct sockaddr *)&addr, sizeof(addr)), 0);
	(void)close(fd); /* left behind, as by a process that was killed */
	ASSERT_EQ(vmm_qmp_create(loop, path, commands, NULL, &second, &err), 0);
	vmm_qmp_free(second);
	gr_loop_free(loop);
}

TEST_MAIN()
