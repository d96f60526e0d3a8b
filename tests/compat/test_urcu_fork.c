/* SPDX-License-Identifier: MIT */
/* The fork hooks of liburcu: no callback runs between them, and all run in both processes. */
#include "program.h"
#include <sys/wait.h>

static unsigned long runs, hooks_called, stop;

static void run_again(struct rcu_head *head)
{
	count(&runs);
	if (!peek(&stop)) {
		call_rcu(head, run_again);
	}
}

static void die_in_child(const char *what)
{
	(void)!write(2, what, strlen(what));
	_exit(1);
}

static void note_hook(void *priv)
{
	count((unsigned long *)priv);
}

/* Also the child of a child, and again in the parent. */
static void fork_with_hooks(int depth)
{
	unsigned long before;
	pid_t pid;
	int status;

	call_rcu_before_fork();
	before = peek(&runs);
	a_while();
	if (peek(&runs) != before) {
		die_in_child("a callback ran between the hooks\n");
	}
	pid = fork();
	if (pid == 0) {
		call_rcu_after_fork_child();
		await_count(&runs, before + 10);
		if (depth > 0) {
			fork_with_hooks(depth - 1);
		}
		__atomic_store_n(&stop, 1UL, __ATOMIC_RELEASE);
		rcu_barrier();
		rcu_barrier(); /* what the last callbacks queued */
		_exit(peek(&hooks_called) == 0 ? 1 : 0);
	}
	call_rcu_after_fork_parent();
	ASSERT_GT(pid, 0);
	await_count(&runs, before + 10);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
}

TEST(callbacks_stand_still_between_the_hooks_and_run_in_both_processes)
{
	struct urcu_atfork hooks = { note_hook, note_hook, note_hook, &hooks_called };
	struct call_rcu_data *mine = create_call_rcu_data(0, -1);
	struct rcu_head a, b;

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	urcu_register_rculfhash_atfork(&hooks);
	urcu_register_rculfhash_atfork(&hooks);
	call_rcu(&a, run_again);
	set_thread_call_rcu_data(mine);
	call_rcu(&b, run_again);
	for (int i = 0; i < 3; i++) {
		fork_with_hooks(1);
	}
	ASSERT_EQ(peek(&hooks_called), 6);
	urcu_unregister_rculfhash_atfork(&hooks);
	urcu_unregister_rculfhash_atfork(&hooks);
	call_rcu_before_fork();
	call_rcu_after_fork_parent();
	ASSERT_EQ(peek(&hooks_called), 6);
	__atomic_store_n(&stop, 1UL, __ATOMIC_RELEASE);
	rcu_barrier();
}

static void *fork_by_hooks_for_ever(void *arg)
{
	(void)arg;
	while (!peek(&stop)) {
		call_rcu_before_fork();
		call_rcu_after_fork_parent();
		count(&runs);
	}
	return NULL;
}

TEST(a_child_of_a_thread_without_hooks_is_whole_though_another_is_between_them)
{
	struct rcu_head head;
	pthread_t t;

	SKIP_FORK_AMONG_THREADS_UNDER_SANITIZERS();
	call_rcu(&head, run_again);
	rcu_barrier();
	t = start(fork_by_hooks_for_ever, NULL);
	for (int i = 0; i < 50; i++) {
		int status;
		pid_t pid;

		await_count(&runs, (unsigned long)i);
		pid = fork();
		if (pid == 0) {
			__atomic_store_n(&stop, 1UL, __ATOMIC_RELEASE);
			call_rcu_before_fork();
			call_rcu_after_fork_parent();
			rcu_barrier();
			call_rcu_data_free(create_call_rcu_data(0, -1));
			_exit(0);
		}
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		ASSERT_EQ(status, 0);
	}
	__atomic_store_n(&stop, 1UL, __ATOMIC_RELEASE);
	join(t);
	rcu_barrier();
}

static void fork_in_section(void *arg)
{
	(void)arg;
	rcu_read_lock();
	call_rcu_before_fork();
}

TEST(the_hook_inside_a_section_dies_naming_itself)
{
	char err[400];
	int status = test_in_child(fork_in_section, NULL, err, sizeof(err));

	ASSERT(!WIFEXITED(status) || WEXITSTATUS(status) != 0);
	ASSERT_HAS(err, "call_rcu_before_fork()");
}

TEST_MAIN()
