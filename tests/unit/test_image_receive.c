/* SPDX-License-Identifier: MIT */
/* An image gets its name when it is whole: until then, and if it never is, the old one stays. */
#include "image_kit.h"
#include "stream/return_path.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/image.h>
#include <pthread.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static bool is_locked(const char *path)
{
	FILE *locks = fopen("/proc/locks", "r");
	bool found = false;
	char line[128], inode[32];
	struct stat st;

	ASSERT(locks);
	ASSERT_EQ(stat(path, &st), 0);
	(void)snprintf(inode, sizeof(inode), ":%ju ", (uintmax_t)st.st_ino);
	while (!found && fgets(line, sizeof(line), locks)) {
		found = strstr(line, inode);
	}
	(void)fclose(locks);
	return found;
}

TEST(broken_stream_leaves_the_part_and_the_old_image)
{
	const char *path = small_image();
	struct gr_error err;
	struct stat before, after, capture;

	ASSERT_EQ(stat(path, &before), 0);
	ASSERT_EQ(stat(in_folder("capture"), &capture), 0);
	ASSERT_EQ(truncate(in_folder("capture"), capture.st_size - 1), 0);
	ASSERT_EQ(receive_file(in_folder("capture"), path, &err) < 0, true);
	ASSERT_HAS(err.msg, "byte ");
	ASSERT_EQ(stat(path, &after), 0);
	ASSERT_EQ(before.st_ino, after.st_ino);
	ASSERT(exists(in_folder("vm.ram.part")));
	gr_image_close(open_well(path));
	remove_folder();
}

TEST(full_disk_is_an_error_that_says_so)
{
	/* enough for the list of blocks, not for the pages of the second one */
	rlim_t bytes = (RAM_PAGES + 1) * PAGE + 100;
	struct rlimit limit = { .rlim_cur = bytes, .rlim_max = bytes };
	struct gr_error err;
	const char *path;

	path = small_image();
	ASSERT_EQ(unlink(path), 0);
	(void)signal(SIGXFSZ, SIG_IGN);
	ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
	ASSERT_EQ(receive_file(in_folder("capture"), path, &err), -EFBIG);
	ASSERT_HAS(err.msg, "vm.ram.part");
	ASSERT_HAS(err.msg, "pc.rom");
	ASSERT(!exists(path));
	ASSERT(exists(in_folder("vm.ram.part")));
	remove_folder();
}

struct receiver {
	struct gr_channel *ch;
	const char *path;
	struct gr_error err;
	int rc;
};

static void *receive_thread(void *arg)
{
	struct receiver *r = arg;

	r->rc = gr_image_receive(r->ch, r->path, NULL, NULL, &r->err);
	return NULL;
}

TEST(source_hears_of_success_when_the_image_has_its_name)
{
	struct gr_return_path_reader answers = { 0 };
	struct gr_return_path_message msg;
	struct receiver r = { .path = in_folder("vm.ram") };
	pthread_t thread;
	struct gr_channel *ch;
	struct stream s;
	int fds[2];

	ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	ASSERT_EQ(gr_channel_from_fd(fds[0], &ch, NULL), 0);
	ASSERT_EQ(gr_channel_from_fd(fds[1], &r.ch, NULL), 0);
	ASSERT_EQ(pthread_create(&thread, NULL, receive_thread, &r), 0);
	stream_begin(&s, ch, true);
	stream_zero(&s, 0, 0);
	ASSERT_EQ(gr_stream_flush(s.w, NULL), 0);
	ASSERT(!exists(r.path));
	stream_end(&s);
	ASSERT_EQ(gr_return_path_next(&answers, ch, &msg, NULL), 1);
	ASSERT_EQ(msg.type, GR_RETURN_SHUT);
	ASSERT_EQ(msg.value, 0);
	ASSERT(exists(r.path));
	ASSERT_EQ(pthread_join(thread, NULL), 0);
	ASSERT_EQ(r.rc, 0);
	(void)gr_channel_close(r.ch, NULL);
	(void)gr_channel_close(ch, NULL);
	stream_free(&s);
	remove_folder();
}

TEST(source_hears_of_failure)
{
	struct gr_return_path_reader answers = { 0 };
	struct gr_return_path_message msg;
	struct receiver r = { .path = in_folder("vm.ram") };
	pthread_t thread;
	struct gr_channel *ch;
	struct stream s;
	int fds[2];

	ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	ASSERT_EQ(gr_channel_from_fd(fds[0], &ch, NULL), 0);
	ASSERT_EQ(gr_channel_from_fd(fds[1], &r.ch, NULL), 0);
	ASSERT_EQ(pthread_create(&thread, NULL, receive_thread, &r), 0);
	stream_begin(&s, ch, true);
	/* the name is taken by a folder meanwhile: it cannot be replaced */
	while (!exists(in_folder("vm.ram.part"))) {
		(void)usleep(1000);
	}
	(void)usleep(20000);
	ASSERT_EQ(mkdir(r.path, 0700), 0);
	stream_end(&s);
	ASSERT_EQ(gr_return_path_next(&answers, ch, &msg, NULL), 1);
	ASSERT_EQ(msg.type, GR_RETURN_SHUT);
	ASSERT_NE(msg.value, 0);
	ASSERT_EQ(pthread_join(thread, NULL), 0);
	ASSERT_LT(r.rc, 0);
	(void)gr_channel_close(r.ch, NULL);
	(void)gr_channel_close(ch, NULL);
	stream_free(&s);
	remove_folder();
}

TEST(second_receiver_of_one_name_is_refused)
{
	struct gr_error err;
	const char *path = small_image();
	const char *part = in_folder("vm.ram.part"), *capture = in_folder("capture");
	struct receiver r = { .path = path };
	struct gr_channel *ch;
	pthread_t thread;
	int fds[2];

	ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	ASSERT_EQ(gr_channel_from_fd(fds[0], &ch, NULL), 0);
	ASSERT_EQ(gr_channel_from_fd(fds[1], &r.ch, NULL), 0);
	ASSERT_EQ(pthread_create(&thread, NULL, receive_thread, &r), 0);
	while (!exists(part) || !is_locked(part)) { /* the lock follows the file */
		(void)usleep(1000);
	}
	ASSERT_EQ(receive_file(capture, path, &err), -EBUSY);
	ASSERT_EQ(gr_channel_close(ch, NULL), 0);
	ASSERT_EQ(pthread_join(thread, NULL), 0);
	ASSERT_LT(r.rc, 0);
	(void)gr_channel_close(r.ch, NULL);
	remove_folder();
}

/* As root `--output /dev/null` would otherwise put a file in the place of the device. */
TEST(what_is_no_file_is_not_replaced)
{
	const char *path = small_image(), *capture = in_folder("capture");
	const char *places[] = { in_folder("fifo"), in_folder("folder"), in_folder("link") };
	struct gr_error err = { 0 };
	struct stat st;

	ASSERT_EQ(unlink(path), 0);
	ASSERT_EQ(mkfifo(places[0], 0600), 0);
	ASSERT_EQ(mkdir(places[1], 0700), 0);
	ASSERT_EQ(symlink("/dev/full", places[2]), 0);
	for (size_t i = 0; i < 3; i++) {
		char part[128];

		ASSERT_EQ(receive_file(capture, places[i], &err), i == 1 ? -EISDIR : -EINVAL);
		ASSERT_HAS(err.msg, places[i]);
		(void)snprintf(part, sizeof(part), "%s.part", places[i]);
		ASSERT(!exists(part)); /* refused before a byte was read */
		ASSERT_EQ(stat(places[i], &st), 0);
		ASSERT(!S_ISREG(st.st_mode));
	}
	remove_folder();
}

TEST(part_that_is_no_file_of_ours_is_not_written)
{
	const char *path = small_image(), *capture = in_folder("capture");
	const char *part = in_folder("vm.ram.part"), *victim = in_folder("victim");
	struct gr_error err = { 0 };
	struct stat st;

	ASSERT_EQ(truncate(capture, 1 << 20) == 0, true);
	ASSERT_EQ(link(capture, victim), 0);
	ASSERT_EQ(symlink(victim, part), 0);
	ASSERT_EQ(receive_file(capture, path, &err), -ELOOP);
	ASSERT_EQ(stat(victim, &st), 0);
	ASSERT_EQ(st.st_size, 1 << 20);
	ASSERT_EQ(unlink(part), 0);
	ASSERT_EQ(mkfifo(part, 0600), 0);
	ASSERT_EQ(receive_file(capture, path, &err), -EINVAL);
	ASSERT_HAS(err.msg, part);
	remove_folder();
}

static void *rename_thread(void *arg)
{
	/* what a first receiver does at its end, over and over */
	const char *const *names = arg;
	int fd;

	for (int i = 0; i < 20000; i++) {
		fd = open(names[0], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0) {
			(void)close(fd);
			continue;
		}
		(void)!write(fd, "whole", 5);
		(void)rename(names[0], names[1]);
		(void)close(fd);
	}
	return NULL;
}

TEST(image_that_got_its_name_is_never_cut_off_by_the_next_receiver)
{
	const char *names[2] = { in_folder("x.part"), in_folder("x") };
	const char *empty = in_folder("empty");
	struct gr_error err;
	pthread_t thread;
	struct stat st;

	{
		int fd = open(empty, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);

		ASSERT(fd >= 0);
		close(fd);
	}
	ASSERT_EQ(pthread_create(&thread, NULL, rename_thread, names), 0);
	for (int i = 0; i < 20000; i++) {
		ASSERT_LT(receive_file(empty, names[1], &err), 0);
		if (stat(names[1], &st) == 0) {
			ASSERT_GE(st.st_size, 5);
		}
	}
	ASSERT_EQ(pthread_join(thread, NULL), 0);
	remove_folder();
}

TEST_MAIN()
