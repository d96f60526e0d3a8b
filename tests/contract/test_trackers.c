/* SPDX-License-Identifier: MIT */
/* The trackers that need no guest, on every kind of memory, under every condition (suite.h). */
#include "suite.h"

static const struct suite_row software_memfd = { .kind = GR_TRACKER_SOFTWARE,
						 .backing = GR_RAM_MEMFD,
						 .writers = GR_WRITERS_MARKED };
static const struct suite_row software_anonymous = { .kind = GR_TRACKER_SOFTWARE,
						     .backing = GR_RAM_ANONYMOUS,
						     .writers = GR_WRITERS_MARKED };
static const struct suite_row uffd_wp_memfd = { .kind = GR_TRACKER_UFFD_WP,
						.backing = GR_RAM_MEMFD,
						.writers = GR_WRITERS_MAPPING };
static const struct suite_row uffd_wp_anonymous = { .kind = GR_TRACKER_UFFD_WP,
						    .backing = GR_RAM_ANONYMOUS,
						    .writers = GR_WRITERS_MAPPING };
static const struct suite_row uffd_wp_and_software = { .kind = GR_TRACKER_UFFD_WP,
						       .backing = GR_RAM_MEMFD,
						       .writers = GR_WRITERS_MAPPING |
								  GR_WRITERS_MARKED };

static const struct suite_row uffd_sync_memfd = { .kind = GR_TRACKER_UFFD_SYNC,
						  .backing = GR_RAM_MEMFD,
						  .writers = GR_WRITERS_MAPPING };
static const struct suite_row uffd_sync_anonymous = { .kind = GR_TRACKER_UFFD_SYNC,
						      .backing = GR_RAM_ANONYMOUS,
						      .writers = GR_WRITERS_MAPPING };
static const struct suite_row uffd_sync_and_software = { .kind = GR_TRACKER_UFFD_SYNC,
							 .backing = GR_RAM_MEMFD,
							 .writers = GR_WRITERS_MAPPING |
								    GR_WRITERS_MARKED };

SUITE_ROWS(software_memfd)
SUITE_ROWS(software_anonymous)
SUITE_ROWS(uffd_wp_memfd)
SUITE_ROWS(uffd_wp_anonymous)
SUITE_ROWS(uffd_wp_and_software)
SUITE_ROWS(uffd_sync_memfd)
SUITE_ROWS(uffd_sync_anonymous)
SUITE_ROWS(uffd_sync_and_software)

static void run_without_privilege(struct suite_row row)
{
	row.without_privilege = true;
	suite_run(&row, SUITE_PLUG);
}

/* The kernel hands us the faults of our own stores only then. */
static void run_stores_without_privilege(struct suite_row row)
{
	row.writers = GR_WRITERS_STORES;
	run_without_privilege(row);
}

TEST(uffd_sync_memfd_without_privilege)
{
	run_stores_without_privilege(uffd_sync_memfd);
}

TEST(uffd_sync_anonymous_without_privilege)
{
	run_stores_without_privilege(uffd_sync_anonymous);
}

TEST(uffd_wp_memfd_without_privilege)
{
	run_without_privilege(uffd_wp_memfd);
}

TEST(uffd_wp_anonymous_without_privilege)
{
	run_without_privilege(uffd_wp_anonymous);
}

TEST_MAIN()
