/* SPDX-License-Identifier: MIT */
/*
 * What this machine offers, found out by trying it here and now. Each probe fills the detail
 * with how, or with the first thing that went wrong.
 */
#include "base/compiler.h"
#include "base/heavy_fence.h"
#include "base/uapi.h"
#include "track/uffd_server.h"
#include "track/uffd_wp.h"
#include <errno.h>
#include <fcntl.h>
#include <guestram/track.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#if __has_include(<asm/kvm.h>)
#	include <linux/kvm.h>
#endif

static void close_fd(int *fd)
{
	if (*fd >= 0) {
		close(*fd);
	}
}
#define CLOSE_FD GR_CLEANUP(close_fd)

static void say(struct gr_feature *f, bool available, const char *fmt, ...) GR_PRINTF(3, 4);
static void say(struct gr_feature *f, bool available, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	f->available = available;
	(void)vsnprintf(f->detail, sizeof(f->detail), fmt, ap);
	va_end(ap);
}

static size_t host_page_bytes(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

/* ---- base ----------------------------------------------------------------------------- */

static void probe_membarrier(struct gr_feature *f)
{
	if (gr_heavy_fence_available()) {
		say(f, true, "private expedited; readers and markers need no fence");
	} else {
		say(f, false,
		    "not offered by the kernel or not allowed; readers and markers use "
		    "fences");
	}
}

static void probe_memfd(struct gr_feature *f)
{
	CLOSE_FD int fd = memfd_create("guestram-probe", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0) {
		say(f, false, "memfd_create: %s", strerror(errno));
	} else if (ftruncate(fd, (off_t)host_page_bytes()) < 0) {
		say(f, false, "ftruncate: %s", strerror(errno));
	} else if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
		say(f, false, "F_ADD_SEALS: %s", strerror(errno));
	} else {
		say(f, true, "sealed in size");
	}
}

/* ---- userfaultfd ---------------------------------------------------------------------- */

static void probe_uffd(struct gr_feature *f)
{
	struct gr_error err;
	CLOSE_FD int fd = gr_uffd_open(0, &err);

	if (fd < 0) {
		say(f, false, "%s", err.msg);
	} else {
		say(f, true, "user mode faults, which needs no privilege");
	}
}

static void probe_uffd_kernel_faults(struct gr_feature *f)
{
	CLOSE_FD int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	CLOSE_FD int dev = -1;

	if (fd >= 0) {
		say(f, true, "by system call");
		return;
	}
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev < 0) {
		say(f, false, "userfaultfd: not permitted; /dev/userfaultfd: %s", strerror(errno));
		return;
	}
	fd = ioctl(dev, GR_USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	if (fd >= 0) {
		say(f, true, "by /dev/userfaultfd");
	} else {
		say(f, false, "/dev/userfaultfd: %s", strerror(errno));
	}
}

static void probe_pagemap_scan(struct gr_feature *f)
{
	struct gr_error err;
	CLOSE_FD int fd = gr_pagemap_open(&err);
	struct gr_page_region region;
	/* This very stack page is certainly there. */
	uint64_t start = (uint64_t)(uintptr_t)&region / host_page_bytes() * host_page_bytes();
	struct gr_pm_scan_arg scan = {
		.size = sizeof(scan),
		.start = start,
		.end = start + host_page_bytes(),
		.vec = (uint64_t)(uintptr_t)&region,
		.vec_len = 1,
		.category_mask = GR_PAGE_IS_PRESENT,
		.return_mask = GR_PAGE_IS_PRESENT,
	};
	int found;

	if (fd < 0) {
		say(f, false, "%s", err.msg);
		return;
	}
	found = ioctl(fd, GR_PAGEMAP_SCAN, &scan);
	if (found < 0) {
		say(f, false, "PAGEMAP_SCAN: %s%s", strerror(errno),
		    errno == ENOTTY ? " (Linux 6.7 has it)" : "");
	} else {
		say(f, found == 1, "%s",
		    found == 1 ? "finds present and written pages" : "a present page is not found");
	}
}

static void probe_wp_async(struct gr_feature *f, bool shared)
{
	struct gr_error err;
	CLOSE_FD int uffd = gr_uffd_open(GR_UFFD_FEATURES_TRACK, &err);
	CLOSE_FD int pagemap = uffd < 0 ? -1 : gr_pagemap_open(&err);
	CLOSE_FD int memfd = -1;

	if (uffd < 0 || pagemap < 0) {
		say(f, false, "%.150s", err.msg);
		return;
	}
	if (shared) {
		memfd = memfd_create("guestram-probe", MFD_CLOEXEC);
		if (memfd < 0 || ftruncate(memfd, (off_t)host_page_bytes()) < 0) {
			say(f, false, "memfd: %s", strerror(errno));
			return;
		}
	}
	if (gr_uffd_wp_try(uffd, pagemap, memfd, &err) < 0) {
		say(f, false, "%.150s", err.msg);
	} else {
		say(f, true, "%s memory; privilege not needed", shared ? "shared" : "anonymous");
	}
}

static void probe_wp_async_anonymous(struct gr_feature *f)
{
	probe_wp_async(f, false);
}

static void probe_wp_async_shared(struct gr_feature *f)
{
	probe_wp_async(f, true);
}

static void probe_wp_sync(struct gr_feature *f)
{
	struct gr_uffd_server s;
	struct gr_error err;

	if (gr_uffd_server_open(&s, NULL, NULL, &err) < 0) {
		say(f, false, "%.150s", err.msg);
		return;
	}
	say(f, true, "anonymous and shared memory; stores%s%s",
	    s.kernel_faults ? ", system calls and KVM" :
			      " of this process alone: no privilege for system calls and KVM",
	    s.unpopulated ? "" : "; pages that are not there are made");
	gr_uffd_server_close(&s);
}

/* What a destination does: place a page, whole or not at all, where none is. */
static const char *try_copy(int uffd, char *page, const char *source, size_t bytes)
{
	uint64_t start = (uint64_t)(uintptr_t)page;
	struct uffdio_register reg = { .range = { start, bytes },
				       .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_copy copy = { .dst = start,
				    .src = (uint64_t)(uintptr_t)source,
				    .len = bytes };

	if (ioctl(uffd, UFFDIO_REGISTER, &reg) < 0) {
		return "UFFDIO_REGISTER";
	}
	if (ioctl(uffd, UFFDIO_COPY, &copy) < 0) {
		return "UFFDIO_COPY";
	}
	if (ioctl(uffd, UFFDIO_COPY, &copy) == 0) {
		errno = EEXIST;
		return "UFFDIO_COPY places a page twice";
	}
	return NULL;
}

static void probe_copy(struct gr_feature *f, bool shared)
{
	size_t bytes = host_page_bytes();
	struct gr_error err;
	CLOSE_FD int uffd = gr_uffd_open(shared ? UFFD_FEATURE_MISSING_SHMEM : 0, &err);
	CLOSE_FD int memfd = -1;
	char *source, *page;
	const char *step;

	if (uffd < 0) {
		say(f, false, "%.150s", err.msg);
		return;
	}
	if (shared) {
		memfd = memfd_create("guestram-probe", MFD_CLOEXEC);
		if (memfd < 0 || ftruncate(memfd, (off_t)bytes) < 0) {
			say(f, false, "memfd: %s", strerror(errno));
			return;
		}
	}
	source = calloc(1, bytes);
	page = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		    shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, memfd, 0);
	if (!source || page == MAP_FAILED) {
		say(f, false, "no memory");
	} else {
		step = try_copy(uffd, page, source, bytes);
		if (step) {
			say(f, false, "%s: %s", step, strerror(errno));
		} else {
			say(f, true, "%s pages are placed at once, and once",
			    shared ? "shared" : "anonymous");
		}
	}
	if (page != MAP_FAILED) {
		munmap(page, bytes);
	}
	free(source);
}

static void probe_copy_anonymous(struct gr_feature *f)
{
	probe_copy(f, false);
}

static void probe_copy_shared(struct gr_feature *f)
{
	probe_copy(f, true);
}

/* ---- KVM ------------------------------------------------------------------------------ */

#ifdef KVM_API_VERSION
/* A VM, or -1 with the reason in f. */
static int open_vm(struct gr_feature *f)
{
	CLOSE_FD int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm, version;

	if (kvm < 0) {
		say(f, false, "/dev/kvm: %s", strerror(errno));
		return -1;
	}
	version = ioctl(kvm, KVM_GET_API_VERSION, 0);
	if (version != KVM_API_VERSION) {
		say(f, false, "/dev/kvm: API version %d, not %d", version, KVM_API_VERSION);
		return -1;
	}
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0) {
		say(f, false, "KVM_CREATE_VM: %s", strerror(errno));
	}
	return vm;
}

static void probe_kvm(struct gr_feature *f)
{
	CLOSE_FD int vm = open_vm(f);

	if (vm >= 0) {
		say(f, true, "API version %d", KVM_API_VERSION);
	}
}

static void probe_kvm_log(struct gr_feature *f)
{
	CLOSE_FD int vm = open_vm(f);
	int caps;

	if (vm < 0) {
		return;
	}
	caps = ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
	if (caps <= 0) {
		say(f, true, "reporting protects at once: no manual protect");
	} else {
		say(f, true, "manual protect%s",
		    caps & KVM_DIRTY_LOG_INITIALLY_SET ? ", initially all set" : "");
	}
}

static void probe_kvm_ring(struct gr_feature *f)
{
	CLOSE_FD int vm = open_vm(f);
	int bytes;

	if (vm < 0) {
		return;
	}
	bytes = ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING);
	if (bytes > 0) {
		say(f, true, "up to %d bytes per vCPU", bytes);
	} else {
		say(f, false, "KVM_CAP_DIRTY_LOG_RING is not offered");
	}
}

#else
static void probe_kvm(struct gr_feature *f)
{
	say(f, false, "KVM does not exist on this architecture");
}
#	define probe_kvm_log  probe_kvm
#	define probe_kvm_ring probe_kvm
#endif

/* ---- huge pages ----------------------------------------------------------------------- */

/* These files list the choices with the chosen one in brackets. */
static void probe_thp(struct gr_feature *f, const char *path)
{
	CLOSE_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
	char text[128], *choice, *end;
	ssize_t n;

	if (fd < 0) {
		say(f, false, "%s: %s", path, strerror(errno));
		return;
	}
	n = read(fd, text, sizeof(text) - 1);
	text[n > 0 ? n : 0] = '\0';
	choice = strchr(text, '[');
	end = choice ? strchr(choice, ']') : NULL;
	if (!end) {
		say(f, false, "%s: not understood", path);
		return;
	}
	*end = '\0';
	choice++;
	say(f, strcmp(choice, "never") != 0 && strcmp(choice, "deny") != 0, "%s says %s", path,
	    choice);
}

static void probe_thp_anonymous(struct gr_feature *f)
{
	probe_thp(f, "/sys/kernel/mm/transparent_hugepage/enabled");
}

static void probe_thp_shared(struct gr_feature *f)
{
	probe_thp(f, "/sys/kernel/mm/transparent_hugepage/shmem_enabled");
}

static void probe_hugetlb(struct gr_feature *f)
{
	/* Rounded up by the kernel where the default size is larger. */
	size_t bytes = 2u << 20;
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);

	if (p == MAP_FAILED) {
		say(f, false, "%s",
		    errno == ENOMEM ? "no page reserved (vm.nr_hugepages)" : strerror(errno));
		return;
	}
	munmap(p, bytes);
	say(f, true, "at least one page of the default size is reserved");
}

unsigned int gr_features_probe(struct gr_feature *features, unsigned int max)
{
	static const struct {
		const char *name;
		void (*probe)(struct gr_feature *f);
	} probes[] = {
		{ "membarrier", probe_membarrier },
		{ "memfd-sealed", probe_memfd },
		{ "userfaultfd", probe_uffd },
		{ "userfaultfd-kernel-faults", probe_uffd_kernel_faults },
		{ "pagemap-scan", probe_pagemap_scan },
		{ "uffd-wp-async", probe_wp_async_anonymous },
		{ "uffd-wp-async-shared", probe_wp_async_shared },
		{ "uffd-wp-sync", probe_wp_sync },
		{ "uffd-copy", probe_copy_anonymous },
		{ "uffd-copy-shared", probe_copy_shared },
		{ "kvm", probe_kvm },
		{ "kvm-dirty-log", probe_kvm_log },
		{ "kvm-dirty-ring", probe_kvm_ring },
		{ "thp", probe_thp_anonymous },
		{ "thp-shared", probe_thp_shared },
		{ "hugetlb", probe_hugetlb },
	};
	unsigned int n;

	_Static_assert(GR_ARRAY_SIZE(probes) <= GR_FEATURES_MAX, "room for all features");
	for (n = 0; n < GR_ARRAY_SIZE(probes) && n < max; n++) {
		memset(&features[n], 0, sizeof(features[n]));
		features[n].name = probes[n].name;
		probes[n].probe(&features[n]);
	}
	return n;
}
