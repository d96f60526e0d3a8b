/* SPDX-License-Identifier: MIT */
#include "kvm_guest.h"
#include "guest/segments.h"
#include "harness.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/*
 * 0x00  fill:  mov [edi], eax        89 07
 *              add edi, edx          01 d7
 *              loop fill             e2 fa
 *              hlt                   f4
 * 0x10  spin:  imul ebx, ebx, 1664525
 *              add ebx, 1013904223
 *              mov edi, ebx
 *              and edi, edx          edx: which bits of a page address may vary
 *              add edi, esi
 *              inc eax
 *              mov [edi], eax
 *              jmp spin
 */
enum { CODE_FILL = 0, CODE_SPIN = 0x10 };
static const uint8_t code[] = {
	0x89, 0x07, 0x01, 0xd7, 0xe2, 0xfa, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4,
	0xf4, 0xf4, 0xf4, 0x69, 0xdb, 0x0d, 0x66, 0x19, 0x00, 0x81, 0xc3, 0x5f, 0xf3,
	0x6e, 0x3c, 0x89, 0xdf, 0x21, 0xd7, 0x01, 0xf7, 0x40, 0x89, 0x07, 0xeb, 0xe9,
};

static void flat_mode(struct kvm_guest *g)
{
	struct kvm_sregs s;

	ASSERT_EQ(ioctl(g->vcpu_fd, KVM_GET_SREGS, &s), 0);
	guest_flat_segments(&s);
	ASSERT_EQ(ioctl(g->vcpu_fd, KVM_SET_SREGS, &s), 0);
}

static void on_kick(int sig)
{
	(void)sig;
}

void kvm_guest_create(struct kvm_guest *g)
{
	memset(g, 0, sizeof(*g));
	g->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (g->kvm_fd < 0) {
		SKIP("no /dev/kvm: %s", strerror(errno));
	}
	g->vm_fd = ioctl(g->kvm_fd, KVM_CREATE_VM, 0);
	if (g->vm_fd < 0) {
		SKIP("KVM makes no VM: %s", strerror(errno));
	}
	g->vcpu_fd = -1;
	pthread_mutex_init(&g->lock, NULL);
	pthread_cond_init(&g->changed, NULL);
	(void)sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = on_kick }, NULL);
}

void kvm_guest_add_vcpu(struct kvm_guest *g, struct gr_kvm_memory *kvm)
{
	struct gr_error err;
	int bytes;

	g->kvm = kvm;
	g->vcpu_fd = ioctl(g->vm_fd, KVM_CREATE_VCPU, 0);
	ASSERT_GE(g->vcpu_fd, 0);
	bytes = ioctl(g->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	ASSERT_GT(bytes, 0);
	g->run_bytes = (size_t)bytes;
	g->run = mmap(NULL, g->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, g->vcpu_fd, 0);
	ASSERT(g->run != MAP_FAILED);
	if (kvm && gr_kvm_vcpu_add(kvm, g->vcpu_fd, &err) < 0) {
		FAIL("%s", err.msg);
	}
	flat_mode(g);
}

void kvm_guest_boot(struct kvm_guest *g, struct gr_ram *ram, uint32_t at)
{
	g->code = at;
	ASSERT_EQ(gr_ram_write(ram, gr_gpa(at), code, sizeof(code), NULL), 0);
}

void kvm_guest_destroy(struct kvm_guest *g)
{
	if (g->vcpu_fd >= 0) {
		munmap(g->run, g->run_bytes);
		close(g->vcpu_fd);
	}
	close(g->vm_fd);
	close(g->kvm_fd);
	pthread_cond_destroy(&g->changed);
	pthread_mutex_destroy(&g->lock);
}

static void set_regs(struct kvm_guest *g, struct kvm_regs r)
{
	r.rflags = 2;
	ASSERT_EQ(ioctl(g->vcpu_fd, KVM_SET_REGS, &r), 0);
}

static void empty_ring(struct kvm_guest *g)
{
	struct gr_error err;

	if (gr_kvm_ring_full(g->kvm, &err) < 0) {
		FAIL("%s", err.msg);
	}
	g->ring_full++;
}

static uint32_t run_out(struct kvm_guest *g)
{
	for (;;) {
		if (ioctl(g->vcpu_fd, KVM_RUN, 0) < 0) {
			ASSERT_EQ(errno, EINTR);
		} else if (g->run->exit_reason == KVM_EXIT_DIRTY_RING_FULL) {
			empty_ring(g);
		} else {
			return g->run->exit_reason;
		}
	}
}

uint32_t kvm_guest_store(struct kvm_guest *g, uint32_t gpa, uint32_t value)
{
	set_regs(g, (struct kvm_regs){
			    .rip = g->code + CODE_FILL, .rdi = gpa, .rax = value, .rcx = 1 });
	return run_out(g);
}

void kvm_guest_fill(struct kvm_guest *g, uint32_t gpa, uint32_t stride, uint32_t count,
		    uint32_t value)
{
	set_regs(g, (struct kvm_regs){ .rip = g->code + CODE_FILL,
				       .rdi = gpa,
				       .rax = value,
				       .rdx = stride,
				       .rcx = count });
	ASSERT_EQ(run_out(g), (uint32_t)KVM_EXIT_HLT);
}

static void run_once(struct kvm_guest *g)
{
	if (ioctl(g->vcpu_fd, KVM_RUN, 0) < 0) {
		ASSERT_EQ(errno, EINTR);
	} else if (g->run->exit_reason == KVM_EXIT_DIRTY_RING_FULL) {
		empty_ring(g);
	} else {
		/* A store where no memory is any more: dropped. */
		ASSERT_EQ(g->run->exit_reason, (uint32_t)KVM_EXIT_MMIO);
	}
}

static void *spin(void *arg)
{
	struct kvm_guest *g = arg;

	pthread_mutex_lock(&g->lock);
	while (g->spinning) {
		if (g->held > 0) {
			pthread_cond_wait(&g->changed, &g->lock);
			continue;
		}
		/* Whoever asks from here on finds it inside, and pokes. */
		__atomic_store_n(&g->run->immediate_exit, 0, __ATOMIC_RELAXED);
		g->inside = true;
		pthread_mutex_unlock(&g->lock);
		run_once(g);
		pthread_mutex_lock(&g->lock);
		g->inside = false;
		pthread_cond_broadcast(&g->changed);
	}
	pthread_mutex_unlock(&g->lock);
	return NULL;
}

void kvm_guest_spin_over(struct kvm_guest *g, uint32_t gpa, uint32_t bits, uint32_t value)
{
	set_regs(g, (struct kvm_regs){ .rip = g->code + CODE_SPIN,
				       .rax = value,
				       .rsi = gpa,
				       .rdx = bits & ~UINT32_C(4095),
				       .rbx = 1 });
	pthread_mutex_lock(&g->lock);
	g->spinning = true;
	g->first_value = value;
	pthread_mutex_unlock(&g->lock);
	ASSERT_EQ(pthread_create(&g->thread, NULL, spin, g), 0);
}

void kvm_guest_spin(struct kvm_guest *g, uint32_t gpa, uint32_t bytes)
{
	kvm_guest_spin_over(g, gpa, bytes - 1, 0);
}

/*
 * With the lock held, out of the guest now or at the next entry: the flag for the second, the
 * signal for the first.
 */
static void wait_until_out(struct kvm_guest *g)
{
	if (g->inside) {
		__atomic_store_n(&g->run->immediate_exit, 1, __ATOMIC_RELAXED);
		pthread_kill(g->thread, SIGUSR1);
	}
	while (g->inside) {
		pthread_cond_wait(&g->changed, &g->lock);
	}
}

uint32_t kvm_guest_halt(struct kvm_guest *g)
{
	struct kvm_regs r;

	pthread_mutex_lock(&g->lock);
	g->spinning = false;
	pthread_cond_broadcast(&g->changed);
	wait_until_out(g);
	pthread_mutex_unlock(&g->lock);
	pthread_join(g->thread, NULL);
	__atomic_store_n(&g->run->immediate_exit, 0, __ATOMIC_RELAXED);
	ASSERT_EQ(ioctl(g->vcpu_fd, KVM_GET_REGS, &r), 0);
	return (uint32_t)r.rax - g->first_value;
}

void kvm_guest_kick(void *arg)
{
	struct kvm_guest *g = arg;

	pthread_mutex_lock(&g->lock);
	g->held++;
	wait_until_out(g);
	pthread_mutex_unlock(&g->lock);
}

void kvm_guest_resume(void *arg)
{
	struct kvm_guest *g = arg;

	pthread_mutex_lock(&g->lock);
	if (--g->held == 0) {
		pthread_cond_broadcast(&g->changed);
	}
	pthread_mutex_unlock(&g->lock);
}
