/* SPDX-License-Identifier: MIT */
#include "harness.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <guestram/track.h>
#include <sys/prctl.h>
#include <unistd.h>

static const struct gr_feature *find(const struct gr_feature *features, unsigned int n,
				     const char *name)
{
	for (unsigned int i = 0; i < n; i++) {
		if (strcmp(features[i].name, name) == 0) {
			return &features[i];
		}
	}
	FAIL("no feature '%s'", name);
}

static unsigned int open_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned int n = 0;

	ASSERT(d);
	while (readdir(d)) {
		n++;
	}
	closedir(d);
	return n;
}

TEST(every_feature_has_a_name_of_its_own_and_a_reason)
{
	struct gr_feature f[GR_FEATURES_MAX];
	unsigned int n = gr_features_probe(f, GR_FEATURES_MAX);

	ASSERT_GT(n, 10u);
	for (unsigned int i = 0; i < n; i++) {
		test_diag("%s: %s (%s)", f[i].name, f[i].available ? "yes" : "no", f[i].detail);
		ASSERT_GT(strlen(f[i].detail), (size_t)5);
		for (unsigned int k = 0; k < i; k++) {
			ASSERT(strcmp(f[i].name, f[k].name) != 0);
		}
	}
}

TEST(no_file_descriptor_stays_open)
{
	struct gr_feature f[GR_FEATURES_MAX];
	unsigned int before = open_fds();

	gr_features_probe(f, GR_FEATURES_MAX);
	ASSERT_EQ(open_fds(), before);
}

TEST(no_more_is_filled_than_there_is_room_for)
{
	struct gr_feature f[3] = { 0 };

	ASSERT_EQ(gr_features_probe(f, 2), 2u);
	ASSERT(f[1].name && !f[2].name);
	ASSERT_EQ(gr_features_probe(f, 0), 0u);
}

TEST(kvm_says_what_the_kernel_says)
{
	struct gr_feature f[GR_FEATURES_MAX];
	unsigned int n = gr_features_probe(f, GR_FEATURES_MAX);
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (fd < 0) {
		char why[128];

		(void)snprintf(why, sizeof(why), "/dev/kvm: %s", strerror(errno));
		ASSERT(!find(f, n, "kvm")->available);
		ASSERT_STR_EQ(find(f, n, "kvm")->detail, why);
		ASSERT(!find(f, n, "kvm-dirty-log")->available);
		ASSERT_STR_EQ(find(f, n, "kvm-dirty-log")->detail, why);
	} else {
		close(fd);
		ASSERT_HAS(find(f, n, "kvm")->detail, "12");
	}
}

/* What an unprivileged process is told: a tracker, but no faults of the kernel. */
TEST(without_privilege_write_protection_stays_what_it_was)
{
	struct gr_feature f[GR_FEATURES_MAX];
	unsigned int n = gr_features_probe(f, GR_FEATURES_MAX);
	bool async = find(f, n, "uffd-wp-async-shared")->available;
	bool sync = find(f, n, "uffd-wp-sync")->available;

	if (geteuid() != 0) {
		SKIP("needs root to drop privileges");
	}
	ASSERT_EQ(setgid(65534) | setuid(65534), 0);
	n = gr_features_probe(f, GR_FEATURES_MAX);
	if (!find(f, n, "pagemap-scan")->available) {
		/* This process has changed its user; a fresh one of that user may look. */
		ASSERT_HAS(find(f, n, "pagemap-scan")->detail, "Permission denied");
		ASSERT_HAS(find(f, n, "uffd-wp-async")->detail, "dumpable");
	}
	ASSERT_EQ(prctl(PR_SET_DUMPABLE, 1), 0);
	n = gr_features_probe(f, GR_FEATURES_MAX);
	ASSERT_EQ(find(f, n, "uffd-wp-async-shared")->available, async);
	ASSERT_EQ(find(f, n, "uffd-wp-async")->available, async);
	if (!find(f, n, "userfaultfd-kernel-faults")->available) {
		ASSERT_HAS(find(f, n, "userfaultfd-kernel-faults")->detail, "ermi");
		ASSERT_EQ(find(f, n, "uffd-wp-sync")->available, sync);
		if (sync) {
			ASSERT_HAS(find(f, n, "uffd-wp-sync")->detail, "of this process alone");
		}
	}
}

TEST_MAIN()
