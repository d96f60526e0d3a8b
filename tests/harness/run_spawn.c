/* SPDX-License-Identifier: MIT */
/*
 * Without fork(): the program starts itself again. `--test NAME FD` runs that test, a reason to
 * skip goes to FD. For test_in_child() it starts the test once more, up to the same call:
 * `--child N` says which, and FILE holds how the calls before it ended.
 */
#include "run.h"
#include <errno.h>
#include <fcntl.h>
#include <process.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include <windows.h>

enum { STATUS_ABORTED = 134 };

/* How one call of test_in_child() ended. */
struct outcome {
	int status;
	char err_text[4096];
};

static struct {
	const char *program, *name;
	int skip_fd;
	int calls;		/* of test_in_child() so far */
	int child;		/* the call that this process is to make itself; 0: none */
	char history[MAX_PATH]; /* file of struct outcome */
} self;

static void die_of_abort(int sig)
{
	(void)sig;
	_exit(STATUS_ABORTED);
}

static void run_test(const struct test_case *tests, char **argv)
{
	self.name = argv[2];
	self.skip_fd = test_skip_fd = atoi(argv[3]);
	self.child = atoi(argv[4]);
	(void)snprintf(self.history, sizeof(self.history), "%s", argv[5]);
	signal(SIGABRT, die_of_abort);
	/* No box that waits for somebody to press a button. */
	SetErrorMode(SEM_FAILCRITICALERRORS | SEM_NOGPFAULTERRORBOX);
	for (const struct test_case *t = tests; t; t = t->next) {
		if (strcmp(t->name, self.name) == 0) {
			t->fn();
			fflush(NULL);
			exit(EXIT_OK);
		}
	}
	FAIL("no test '%s'", self.name);
}

void test_run_init(int *argc, char **argv, const struct test_case *tests)
{
	self.program = argv[0];
	_setmode(STDOUT_FILENO, _O_BINARY);
	if (*argc == 6 && strcmp(argv[1], "--test") == 0) {
		run_test(tests, argv);
	}
}

/* The process of test `name`. -1: cannot start. */
static intptr_t start(const char *name, int skip_fd, int child, const char *history)
{
	char fd_text[16], child_text[16], quoted[MAX_PATH + 2];

	(void)snprintf(fd_text, sizeof(fd_text), "%d", skip_fd);
	(void)snprintf(child_text, sizeof(child_text), "%d", child);
	(void)snprintf(quoted, sizeof(quoted), "\"%s\"", *history ? history : "-");
	fflush(NULL);
	return _spawnl(_P_NOWAIT, self.program, self.program, "--test", name, fd_text, child_text,
		       quoted, NULL);
}

/* Its exit code, or false: killed, it had not ended in time. */
static bool wait_for(intptr_t process, int seconds, DWORD *ret_code)
{
	HANDLE h = (HANDLE)process;
	bool ended = WaitForSingleObject(h, (DWORD)seconds * 1000) == WAIT_OBJECT_0;

	if (!ended) {
		(void)TerminateProcess(h, EXIT_FAILED);
		(void)WaitForSingleObject(h, INFINITE);
	}
	if (!GetExitCodeProcess(h, ret_code)) {
		*ret_code = EXIT_FAILED;
	}
	CloseHandle(h);
	return ended;
}

/* As waitpid(2) has it. */
static int posix_status(DWORD code)
{
	if (code == STATUS_ABORTED || code == 3) {
		return SIGABRT;
	}
	return code >= 0xc0000000u ? 11 : (int)((code & 255) << 8);
}

static void temporary_file(char *name)
{
	char folder[MAX_PATH];

	if (GetTempPathA(sizeof(folder), folder) == 0 ||
	    GetTempFileNameA(folder, "gr", 0, name) == 0) {
		FAIL("no temporary file");
	}
}

static void read_text(const char *file, char *text, size_t bytes)
{
	int fd = open(file, O_RDONLY | O_BINARY);
	int n = fd < 0 ? -1 : read(fd, text, (unsigned int)(bytes - 1));

	text[n > 0 ? n : 0] = '\0';
	if (fd >= 0) {
		close(fd);
	}
	(void)unlink(file);
}

static void recall(struct outcome *o)
{
	FILE *f = fopen(self.history, "rb");

	if (!f || fseek(f, (long)sizeof(*o) * (self.calls - 1), SEEK_SET) != 0 ||
	    fread(o, sizeof(*o), 1, f) != 1) {
		FAIL("no outcome of call %d in '%s'", self.calls, self.history);
	}
	fclose(f);
}

static void remember(const struct outcome *o)
{
	FILE *f = fopen(self.history, "ab");

	if (!f || fwrite(o, sizeof(*o), 1, f) != 1 || fclose(f) != 0) {
		FAIL("cannot keep an outcome in '%s'", self.history);
	}
}

/* Runs this test once more, up to this call. */
static void make_the_call(struct outcome *o)
{
	char errors[MAX_PATH];
	int fd, old_stderr = dup(STDERR_FILENO), old_stdout = dup(STDOUT_FILENO);
	int nothing = open("NUL", O_WRONLY);
	intptr_t process;
	DWORD code;

	temporary_file(errors);
	fd = open(errors, O_WRONLY | O_TRUNC | O_BINARY);
	dup2(fd, STDERR_FILENO);
	dup2(nothing, STDOUT_FILENO);
	process = start(self.name, self.skip_fd, self.calls, self.history);
	dup2(old_stderr, STDERR_FILENO);
	dup2(old_stdout, STDOUT_FILENO);
	close(old_stderr);
	close(old_stdout);
	close(nothing);
	close(fd);
	if (process == -1) {
		FAIL("cannot start: %s", strerror(errno));
	}
	o->status = wait_for(process, 60, &code) ? posix_status(code) : 9;
	read_text(errors, o->err_text, sizeof(o->err_text));
}

int test_in_child(void (*fn)(void *), void *arg, char *err_text, size_t err_bytes)
{
	struct outcome o = { 0 };

	if (++self.calls == self.child) {
		fn(arg);
		exit(0);
	}
	if (!*self.history || strcmp(self.history, "-") == 0) {
		temporary_file(self.history);
	}
	if (self.calls < self.child) {
		recall(&o);
	} else {
		make_the_call(&o);
		remember(&o);
	}
	if (err_text && err_bytes) {
		(void)snprintf(err_text, err_bytes, "%s", o.err_text);
	}
	return o.status;
}

int test_run(const struct test_case *t, int seconds, char *why, size_t why_bytes)
{
	int skip_pipe[2], n;
	intptr_t process;
	DWORD code;

	if (_pipe(skip_pipe, 4096, _O_BINARY) != 0) {
		FAIL("no pipe: %s", strerror(errno));
	}
	process = start(t->name, skip_pipe[1], 0, "");
	close(skip_pipe[1]);
	if (process == -1) {
		close(skip_pipe[0]);
		(void)snprintf(why, why_bytes, "cannot start: %s", strerror(errno));
		return EXIT_FAILED;
	}
	if (!wait_for(process, seconds, &code)) {
		close(skip_pipe[0]);
		(void)snprintf(why, why_bytes, "no end after %d s", seconds);
		return EXIT_FAILED;
	}
	n = code == EXIT_SKIPPED ? read(skip_pipe[0], why, (unsigned int)(why_bytes - 1)) : 0;
	why[n > 0 ? n : 0] = '\0';
	close(skip_pipe[0]);
	if (code > EXIT_SKIPPED) {
		(void)snprintf(why, why_bytes, "ended with %#lx", code);
		return EXIT_FAILED;
	}
	return (int)code;
}

void test_not_here(const char *what)
{
	test_skip("no %s on Windows", what);
}

void *mmap(void *at, size_t bytes, int prot, int flags, int fd, off_t offset)
{
	void *p = VirtualAlloc(at, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);

	(void)prot;
	(void)flags;
	(void)fd;
	(void)offset;
	return p ? p : MAP_FAILED;
}

int munmap(void *p, size_t bytes)
{
	(void)bytes;
	return VirtualFree(p, 0, MEM_RELEASE) ? 0 : -1;
}

int mprotect(void *p, size_t bytes, int prot)
{
	DWORD old;

	return VirtualProtect(p, bytes, prot == PROT_NONE ? PAGE_NOACCESS : PAGE_READWRITE, &old)
		       ? 0
		       : -1;
}

long sysconf(int name)
{
	SYSTEM_INFO info;

	GetSystemInfo(&info);
	return name == _SC_PAGESIZE ? (long)info.dwPageSize : (long)info.dwNumberOfProcessors;
}

void *test_pages(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ASSERT(p != MAP_FAILED);
	return p;
}

void test_pages_free(void *pages, size_t bytes)
{
	ASSERT_EQ(munmap(pages, bytes), 0);
}
