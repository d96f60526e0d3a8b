/* SPDX-License-Identifier: MIT */
/*
 * The process-wide barrier under seccomp filters, as containers have them: refused, refused
 * half way, and watched. A filter lives until the process ends and must be there before the
 * library starts, so each test starts this program again, under a filter, in a role.
 */
#include "base/heavy_fence.h"
#include "base/uapi.h"
#include "concurrent.h"
#include <guestram/rcu.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	GLOBAL = 1, /* MEMBARRIER_CMD_GLOBAL: milliseconds, and an error on nohz_full machines */
	ALL_COMMANDS = -1,
};

/*
 * From now on, for good: membarrier with this command (or with any), or with any *but* these
 * three of ours, has that outcome; everything else is allowed.
 */
enum match { COMMAND_IS, COMMAND_IS_NOT_OURS };

static bool filter_membarrier(enum match match, int command, uint32_t outcome)
{
	struct sock_filter is[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_membarrier, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
		BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, command == ALL_COMMANDS ? 0 : (uint32_t)command,
			 0, 2),
		BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K,
			 command == ALL_COMMANDS ? UINT32_MAX : (uint32_t)command, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, outcome),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_filter not_ours[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_membarrier, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, GR_MEMBARRIER_CMD_QUERY, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, GR_MEMBARRIER_CMD_PRIVATE_EXPEDITED, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, GR_MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 1,
			 0),
		BPF_STMT(BPF_RET | BPF_K, outcome),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = sizeof(is) / sizeof(is[0]), .filter = is };

	if (match == COMMAND_IS_NOT_OURS) {
		program.len = sizeof(not_ours) / sizeof(not_ours[0]);
		program.filter = not_ours;
	}
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
	       prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* ---- what the program does in a role ---------------------------------------------------- */

static uint64_t done;
static bool stop;

static void *read_always(void *arg)
{
	(void)arg;
	while (!LOAD(&stop)) {
		gr_rcu_read_lock();
		gr_rcu_read_unlock();
	}
	return NULL;
}

static void *read_at_length(void *arg)
{
	(void)arg;
	while (!LOAD(&stop)) {
		gr_rcu_read_lock();
		sleep_ms(1);
		gr_rcu_read_unlock();
	}
	return NULL;
}

static void count(struct gr_rcu_head *head)
{
	free(head);
	ADD(&done, 1);
}

static void use_everything(void)
{
	pthread_t fast = spawn(read_always, NULL), slow = spawn(read_at_length, NULL);

	for (int i = 0; i < 50; i++) {
		gr_rcu_synchronize();
		gr_rcu_call(NULL, malloc(sizeof(struct gr_rcu_head)), count);
	}
	gr_rcu_barrier(NULL);
	STORE(&stop, true);
	pthread_join(fast, NULL);
	pthread_join(slow, NULL);
	ASSERT_EQ(LOAD(&done), 50u);
}

static void use_everything_and_fork(void)
{
	int status;
	pid_t pid;

	use_everything();
	pid = fork();
	STORE(&stop, false);
	STORE(&done, 0);
	use_everything();
	if (pid == 0) {
		_exit(0);
	}
	while (waitpid(pid, &status, 0) != pid) {
	}
	ASSERT_EQ(status, 0);
}

static void lose_the_barrier_later(void)
{
	(void)spawn(read_always, NULL);
	if (!filter_membarrier(COMMAND_IS, GR_MEMBARRIER_CMD_PRIVATE_EXPEDITED,
			       SECCOMP_RET_ERRNO | EPERM)) {
		_exit(0);
	}
	for (;;) {
		gr_rcu_synchronize(); /* dies, once the reader is hot */
	}
}

static int play(const char *role)
{
	if (strcmp(role, "fences") == 0) {
		ASSERT(!gr_heavy_fence_available());
		use_everything_and_fork();
	} else if (strcmp(role, "barriers") == 0) {
		ASSERT(gr_heavy_fence_available());
		use_everything_and_fork();
	} else if (strcmp(role, "global") == 0) {
		(void)syscall(SYS_membarrier, GLOBAL, 0, 0);
	} else if (strcmp(role, "later") == 0) {
		lose_the_barrier_later();
	}
	return 0;
}

/* ---- who starts it ------------------------------------------------------------------------ */

struct part {
	const char *role;
	enum match match;
	int command;
	uint32_t outcome;
};

static void start_again(void *arg)
{
	const struct part *p = arg;

	if (!filter_membarrier(p->match, p->command, p->outcome)) {
		_exit(77);
	}
	setenv("GR_TEST_ROLE", p->role, 1);
	execl("/proc/self/exe", "filtered", (char *)NULL);
	_exit(78);
}

static int status_of(const char *role, enum match match, int command, uint32_t outcome, char *text,
		     size_t bytes)
{
	struct part p = { role, match, command, outcome };
	int status = test_in_child(start_again, &p, text, bytes);

	if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
		SKIP("no seccomp filters here");
	}
	return status;
}

static void skip_without_the_barrier(void)
{
	if (!gr_heavy_fence_available()) {
		SKIP("no process-wide barrier here");
	}
	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
}

TEST(a_kernel_that_lacks_or_refuses_the_barrier_means_fences_and_everything_works)
{
	static const int errnos[] = { ENOSYS, EPERM, EINVAL };

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	for (size_t i = 0; i < sizeof(errnos) / sizeof(errnos[0]); i++) {
		uint32_t no = SECCOMP_RET_ERRNO | (uint32_t)errnos[i];

		ASSERT_EQ(status_of("fences", COMMAND_IS, ALL_COMMANDS, no, NULL, 0), 0);
	}
}

TEST(a_filter_that_passes_the_query_and_refuses_the_command_is_found_at_the_start)
{
	uint32_t no = SECCOMP_RET_ERRNO | EPERM;

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	ASSERT_EQ(status_of("fences", COMMAND_IS, GR_MEMBARRIER_CMD_PRIVATE_EXPEDITED, no, NULL, 0),
		  0);
	ASSERT_EQ(status_of("fences", COMMAND_IS, GR_MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, no,
			    NULL, 0),
		  0);
}

TEST(no_command_of_the_barrier_is_used_but_the_private_expedited_ones)
{
	int status;

	skip_without_the_barrier();
	ASSERT_EQ(status_of("barriers", COMMAND_IS_NOT_OURS, 0, SECCOMP_RET_KILL_PROCESS, NULL, 0),
		  0);
	/* The filter can tell: */
	status = status_of("global", COMMAND_IS_NOT_OURS, 0, SECCOMP_RET_KILL_PROCESS, NULL, 0);
	ASSERT(WIFSIGNALED(status));
	ASSERT_EQ(WTERMSIG(status), SIGSYS);
}

TEST(a_barrier_that_is_taken_away_later_dies_with_a_message)
{
	char text[1024];
	int status;

	skip_without_the_barrier();
	status = status_of("later", COMMAND_IS, GLOBAL, SECCOMP_RET_ALLOW, text, sizeof(text));
	ASSERT(WIFSIGNALED(status));
	ASSERT_EQ(WTERMSIG(status), SIGABRT);
	ASSERT_HAS(text, "membarrier worked at the start and fails now");
}

int main(int argc, char **argv)
{
	const char *role = getenv("GR_TEST_ROLE");

	return role ? play(role) : test_main(argc, argv);
}
