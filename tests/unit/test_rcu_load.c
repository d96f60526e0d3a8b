/* SPDX-License-Identifier: MIT */
/*
 * The library's coming and going: used in constructors before main, while the process ends, by
 * modules that are loaded into running threads, and loaded itself many times over.
 */
#include "concurrent.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <guestram/event.h>
#include <guestram/rcu.h>
#include <stdlib.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

_Static_assert(sizeof(struct gr_rcu_reader) % 128 == 0, "readers would share a line");

/* ---- before main and after it -------------------------------------------------------------- */

enum { CALLBACKS = 1000 };

static unsigned ran;
static int *published;

static void count_run(struct gr_rcu_head *head)
{
	free(head);
	ADD(&ran, 1u);
}

static int use_everything(void)
{
	int *old = published, *new = malloc(sizeof(*new)), seen;

	*new = 42;
	gr_rcu_assign_pointer(published, new);
	gr_rcu_read_lock();
	seen = *gr_rcu_dereference(published);
	gr_rcu_read_unlock();
	gr_rcu_synchronize();
	free(old);
	for (int i = 0; i < CALLBACKS; i++) {
		gr_rcu_call(NULL, malloc(sizeof(struct gr_rcu_head)), count_run);
	}
	return seen;
}

static bool has_role(const char *role)
{
	const char *mine = getenv("GR_TEST_ROLE");

	return mine && strcmp(mine, role) == 0;
}

/* Before any constructor of the library: theirs have no priority. */
__attribute__((constructor(101))) static void before_main(void)
{
	if (has_role("before_main")) {
		ASSERT_EQ(use_everything(), 42);
		gr_rcu_barrier(NULL);
		ASSERT_EQ(ran, (unsigned)CALLBACKS);
	}
}

/* The last of all destructors. The worker may be in the middle of a batch. */
__attribute__((destructor(101))) static void after_main(void)
{
	if (has_role("after_main")) {
		ASSERT_EQ(use_everything(), 42);
		gr_rcu_barrier(NULL);
		ASSERT_EQ(ran, 2u * CALLBACKS);
		free(published);
		published = NULL;
	}
}

/* In the emulator that we run in, if any: the kernel could not run the program without. */
static void start_again(void *role)
{
	char program[4096];
	ssize_t n = readlink("/proc/self/exe", program, sizeof(program) - 1);

	ASSERT_GT(n, (ssize_t)0);
	program[n] = '\0';
	setenv("GR_TEST_ROLE", role, 1);
	execl("/bin/sh", "sh", "-c", "exec $MESON_EXE_WRAPPER \"$0\"", program, (char *)NULL);
	_exit(78);
}

static void must_work_in_role(const char *role)
{
	char text[2048];
	int status = test_in_child(start_again, (void *)(uintptr_t)role, text, sizeof(text));

	if (status != 0) {
		FAIL("as %s: status %#x, it said: %s", role, status, text);
	}
}

TEST(sections_grace_periods_and_callbacks_work_in_constructors_before_the_librarys)
{
	must_work_in_role("before_main");
}

TEST(they_work_in_the_last_destructor_while_the_worker_runs_callbacks)
{
	must_work_in_role("after_main");
}

TEST(a_process_that_ends_with_callbacks_queued_neither_hangs_nor_crashes)
{
	for (int i = 0; i < 20; i++) {
		must_work_in_role("just_end");
	}
}

/* ---- loaded --------------------------------------------------------------------------------- */

static char folder[64];

static void make_folder(void)
{
	(void)snprintf(folder, sizeof(folder), "/tmp/gr-load-XXXXXX");
	ASSERT(mkdtemp(folder) != NULL);
}

/* A file of its own is a library of its own to the loader. */
static void *load_copy(const char *from, int n)
{
	char to[128];
	struct stat st;
	int in = open(from, O_RDONLY), out;
	void *h;

	(void)snprintf(to, sizeof(to), "%s/%d.so", folder, n);
	out = open(to, O_CREAT | O_WRONLY, 0700);
	ASSERT(in >= 0 && out >= 0);
	ASSERT_EQ(fstat(in, &st), 0);
	while (sendfile(out, in, NULL, (size_t)st.st_size) > 0) {
	}
	close(in);
	close(out);
	h = dlopen(to, RTLD_NOW | RTLD_LOCAL);
	if (!h) {
		FAIL("copy %d: %s", n, dlerror());
	}
	unlink(to);
	return h;
}

static void *must_find(void *handle, const char *name)
{
	void *p = dlsym(handle, name);

	if (!p) {
		FAIL("no %s: %s", name, dlerror());
	}
	return p;
}

static void call(void *handle, const char *name)
{
	void (*fn)(void);

	*(void **)&fn = must_find(handle, name);
	fn();
}

static void *use_copy(void *handle)
{
	ASSERT_EQ((uintptr_t)must_find(handle, "gr_rcu_self") % 128, 0u);
	call(handle, "gr_rcu_register_thread");
	call(handle, "gr_rcu_synchronize");
	return NULL; /* and leaves by itself */
}

static void skip_with_instrumented_copies(void)
{
#ifdef GR_DEBUG_CHECKS
	SKIP("the checking build's thread-local variables are too large to be loaded late");
#endif
	if (test_under_asan() || test_under_tsan()) {
		SKIP("sanitizers take a second copy of a variable for a mistake");
	}
}

static void use_copies(int n)
{
	void *copy[20];

	make_folder();
	for (int i = 0; i < n; i++) {
		copy[i] = load_copy(GR_TEST_LIBRARY, i);
		use_copy(copy[i]);
		pthread_join(spawn(use_copy, copy[i]), NULL);
	}
	for (int i = 0; i < n; i++) {
		call(copy[i], "gr_rcu_unregister_thread");
		dlclose(copy[i]); /* stays in memory: -z nodelete */
	}
	rmdir(folder);
}

/*
 * Its thread-local variables lie in static TLS (the lookup cache of src/ram wants no function
 * call), of which a running process has 512 bytes to spare. One copy must fit by far.
 */
TEST(the_library_fits_into_a_running_process_more_than_once)
{
	skip_with_instrumented_copies();
	use_copies(2);
}

/* With that much more to spare. */
TEST(twenty_copies_in_one_process_do_not_disturb_each_other)
{
	skip_with_instrumented_copies();
	setenv("GLIBC_TUNABLES", "glibc.rtld.optional_static_tls=16384", 1);
	must_work_in_role("twenty_copies");
}

static struct gr_event loaded = GR_EVENT_INIT(false);
static int (*plugin_use)(void);

static void *older_than_the_module(void *arg)
{
	(void)arg;
	gr_event_wait(&loaded);
	for (int i = 0; i < 100; i++) {
		ASSERT_EQ(plugin_use(), 42);
	}
	return NULL;
}

TEST(threads_older_than_a_module_use_its_inline_sections)
{
	pthread_t t[4];

#ifdef GR_DEBUG_CHECKS
	SKIP("the checking build's thread-local variables are too large to be loaded late");
#endif
	for (int i = 0; i < 4; i++) {
		t[i] = spawn(older_than_the_module, NULL);
	}
	for (int i = 0; i < 20; i++) {
		void *h = dlopen(GR_TEST_PLUGIN, RTLD_NOW | RTLD_LOCAL);

		if (!h) {
			FAIL("%s", dlerror());
		}
		*(void **)&plugin_use = must_find(h, "plugin_use");
		ASSERT_EQ(plugin_use(), 42);
		if (i < 19) {
			dlclose(h);
		}
	}
	gr_event_set(&loaded);
	for (int i = 0; i < 4; i++) {
		pthread_join(t[i], NULL);
	}
}

int main(int argc, char **argv)
{
	if (!getenv("GR_TEST_ROLE")) {
		return test_main(argc, argv);
	}
	if (has_role("after_main") || has_role("just_end")) {
		ASSERT_EQ(use_everything(), 42);
	}
	if (has_role("twenty_copies")) {
		use_copies(20);
	}
	return 0;
}
